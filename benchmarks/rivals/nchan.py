"""Rival: nginx with nchan, with messages in memory or in Redis. Debian package: libnginx-mod-nchan."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

MODULE_PACKAGE: Final = "libnginx-mod-nchan"
MODULE: Final = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
# Debian's build makes its folders in there whatever the configuration says.
STATE: Final = Path("/var/lib/nginx")

_CONFIG: Final = """\
load_module {module};
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  nchan_shared_memory_size 512M;
{upstream}
  keepalive_requests 100000000;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/pub/(.+)$ {{
      nchan_publisher http;
      nchan_channel_id $1;
      nchan_message_buffer_length 20000;
      nchan_message_timeout 1h;
{redis_pass}
    }}
    location ~ ^/sub/(.+)$ {{
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message oldest;
{redis_pass}
    }}
  }}
}}
"""


def find_missing() -> str:
    """Returns the reason why it cannot run here; empty if it can."""
    if shutil.which("nginx") is None or not MODULE.exists():
        return f"nchan is not installed: apt-get install {MODULE_PACKAGE}"
    if not STATE.is_dir():
        return f"nginx does not start without {STATE}: make that folder"
    return ""


def versions() -> str:
    """Returns the Debian versions of nginx and nchan; empty if it cannot run."""
    if find_missing():
        return ""
    if shutil.which("dpkg-query") is None:
        return "nchan of an unknown version"
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${Version}, ", "nginx", MODULE_PACKAGE]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.removesuffix(", ")


def write_config(folder: Path, port: int, redis_url: str | None) -> Path:
    """Returns the configuration of one nginx process."""
    upstream = f"  upstream storage {{ nchan_redis_server {redis_url}; }}" if redis_url else ""
    text = _CONFIG.format(
        module=MODULE, folder=folder, port=port, upstream=upstream,
        redis_pass="      nchan_redis_pass storage;" if redis_url else "",
    )  # fmt: skip
    path = folder / "nginx.conf"
    path.write_text(text)
    return path
