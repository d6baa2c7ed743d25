"""The Redis key schema. Every key is built here and nowhere else.

    sb:run:{<run_id>}                 hash    the run record                     TTL: the retention, from the run's end on
                                              or the tombstone of a deleted run  TTL: an hour
    sb:run:{<run_id>}:stages          list    the stages begun, in order         TTL: as the record
    sb:run:{<run_id>}:stage:<stage>   stream  the stage's events                 TTL: as the record
    sb:run:{<run_id>}:items           hash    a model stage's items, JSON, by stage; only the worker reads them
                                                                                 TTL: as the record
    sb:run:{<run_id>}:results         hash    results of calls that wait, JSON, and who runs them; see
                                              shared/domain/call_results.py      TTL: as the record
    sb:run:{<run_id>}:live            channel each append, as SSE bytes
    sb:run:{<run_id>}:control         channel cancels, decisions and results, for the worker
    sb:runs:<tenant>                  zset    run ids by creation time, ms       trimmed at each creation; TTL: LIFE
    sb:runs:<tenant>/<user hash>      zset    those of one user                  the same
    sb:active                         zset    runs that have not ended           emptied as they end
    sb:active:<tenant>                zset    those of one tenant                trimmed at each creation; TTL: LIFE
    sb:running                        zset    "<tenant> <run_id>" of runs that were acquired and neither ended nor
                                              given back                         emptied as they leave
    sb:throttled                      zset    "<tenant> <run_id>" of due runs whose tenant is at its limit
    sb:fair:vtime                     string  the virtual time of the run that was acquired last    TTL: LIFE
    sb:fair:vtime:<tenant>            string  the virtual time of the tenant's next run             TTL: LIFE
    sb:limits                         hash    "<tenant>:<limit>": a tenant's own limits; the operator writes it
    sb:rate:<tenant>                  string  when the request quota is full again, us      TTL: until then
    sb:rate:<tenant>:<ticket_id>      string  the same for the requests with one ticket     TTL: until then
    sb:streams:<tenant>               hash    "<open> <until, ms>" by gateway    TTL: half a minute
    sb:tokens:<tenant>                hash    day (since 1970, UTC), used, reserved (by active runs, whatever the day)
                                                                                 TTL: LIFE, at least two days
    sb:reserved                       hash    tokens reserved for a run, by "<tenant> <run_id>"   emptied as they end
    sb:idempotency:<tenant>:<key>     string  "<run_id> <body hash>"             TTL: as the record
    sb:chat:<tenant>:<hash>           string  the id of a chat's newest run      TTL: LIFE
    sb:thread:{<tag>}:<digest>        hash    a conversation: its identity, active run, head, counts, title, metadata
                                                                                 TTL: THREAD, as all keys of the thread
    sb:thread:{<tag>}:<digest>:turns  hash    by run id: its parent `p:`, place `n:`, time `t:`, status `s:`, error code
                                              `c:`, last event `e:`, bytes `b:`; how it waits or left, `w:`; deleted, `d:`
    sb:thread:{<tag>}:<digest>:in     hash    each run's own messages, JSON, by run id
    sb:thread:{<tag>}:<digest>:out    hash    each ended run's resulting messages, JSON, by run id
    sb:thread:{<tag>}:<digest>:line   list    the runs that wait for their turn, the next one first
    sb:thread:{<tag>}:<digest>:order  zset    the turns by activation
    sb:thread:{<tag>}:<digest>:live   channel changes of the active and waiting runs
    sb:threads:{<tag>}:<tenant>       zset    a tenant's threads by last activity, ms    trimmed; TTL: THREAD
    sb:threads-busy:{<tag>}           set     threads with an active or a waiting run    emptied as they become idle
    sb:key:<key_id>                   hash    an API key: tenant, scopes, hash   TTL: until it expires, if it does
    sb:keys                           zset    API key ids by last use, Unix ms
    sb:session:<session_id>           string  a revoked session                  TTL: until it would have expired
    sb:feed:<tenant>                  stream  what happened to a tenant's runs; also the channel of its live entries
                                              bounded; TTL: a day after the last entry
    sb:outbox                         stream  what webhooks have to be told of    emptied by the workers; bounded
    sb:outbox:bell                    list    wakes a worker that empties it      bounded
    sb:webhook:<delivery_id>          hash    a message on its way to one endpoint   TTL: from its end on
    sb:webhooks:endpoints             hash    open deliveries by endpoint         emptied as they end; bounded
    sb:webhooks:gone                  hash    the URLs of endpoints that answered 410, by endpoint
    sb:webhooks:open:<endpoint>       zset    open deliveries by creation, ms     emptied as they end
    sb:webhooks:due:<endpoint>        zset    the same by their next try, or the end of the lease of the present one, ms
    sb:webhooks:trying:<endpoint>     zset    those that are being sent, by the end of the lease, ms
    sb:webhooks:delivered, sb:webhooks:failed  zset  ended ones by their end, ms   bounded; TTL: as long as they are kept
    sb:tasks:<source>                 zset    tasks at a tool source's server, JSON, by the time of the next look or the end
                                              of the lease of the present one, ms; see shared/domain/polled_task.py
                                                                                 emptied as they end; TTL: 8 days
    sb:queue                          zset    arq's queue; score = a new run's virtual time, the end of a lease, a due
                                              time (Unix ms), or THROTTLED_SCORE
    sb:wakeup                         list    run ids that wake waiting workers  bounded
    sb:tools                          hash    a tool's description, JSON, by name; the workers write it
    sb:tools:seen                     zset    tools by the time a worker last published them, ms; trimmed
    sb:workers, sb:gateways           hash    state of each process, JSON, by name; see shared/store/heartbeats.py
                                                                                 TTL: a few missed heartbeats
    sb:workers:seen, sb:gateways:seen zset    processes by their last heartbeat, ms; trimmed; TTL: the same
    sb:totals                         hash    totals over all ended runs: events, tokens, runs_<status>
    sb:totals:<minute>                hash    the same over the runs that ended in that minute (since 1970)
                                                                                 TTL: two hours
    sb:sweep                          string  the process that sweeps            TTL: sweep_s
    sb:sweep:position                 string  up to which creation time, ms, the sweeps have looked at all active runs
                                                                                 TTL: LIFE
    sb:provider:{<name>}:held         zset    slots held; score = when each expires, ms      TTL: of the last slot
    sb:provider:{<name>}:waiting      zset    requests that wait for a slot; score = since when, ms   TTL: as `seen`
    sb:provider:{<name>}:seen         zset    the same; score = when each is removed, ms     TTL: of the last one
    sb:provider:{<name>}:requests     zset    requests of the last minute; score = ms        TTL: 60 s
    sb:provider:{<name>}:tokens       string  when the token bucket is full again, us        TTL: until then
    sb:provider:{<name>}:freed        channel a slot was released while a request waited
    arq:job:<run_id>                  string  arq's job, JSON                    TTL: as the record
    arq:in-progress:<run_id>          string  the lease: its holder's token      TTL: lease_s
    arq:retry:<run_id>                string  arq's own count, not used here

While a run is active, its keys have no TTL and `sb:active` contains it; the sweep goes through that set. LIFE is
live_ttl_s + retention_s after the tenant's last creation; the sweep extends it for older active runs.

THREAD is thread_retention_s after a thread's last activity, but at least live_ttl_s; the sweep extends it for threads with
an active or a waiting run. <tag> is the partition of a thread and of all its runs (shared/domain/partitions.py).

A user has idempotency keys, chats and a list of runs of their own: `<tenant>/<user hash>` stands for `<tenant>` then.

A system on a cluster has partitions, and the keys that runs share are theirs: `sb:queue:{CE}`, `sb:runs:{CE}:<tenant>`
(shared/storage/partition_keys.py). The keys of a run keep their names, except that arq's have the id in braces.

The braces are a hash tag: all keys of one run hash to one slot, so one Lua
script may name several of them.
Spec: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from hashlib import sha256
from typing import Final

from stagebus.shared.domain.runs import STAGE_IDS
from stagebus.shared.domain.threads import ThreadIdentity

RUN_PREFIX: Final = "sb:run:"
_THREAD_PREFIX: Final = "sb:thread:"
ACTIVE: Final = "sb:active"
QUEUE: Final = "sb:queue"
WAKEUP: Final = "sb:wakeup"
# More entries would wake no more workers: each worker takes all the due runs that it can hold.
WAKEUPS_MAX: Final = 256
SWEEP: Final = "sb:sweep"
SWEEP_POSITION: Final = "sb:sweep:position"
TOOLS: Final = "sb:tools"
API_KEYS: Final = "sb:keys"
TOOLS_SEEN: Final = "sb:tools:seen"
RUNNING: Final = "sb:running"
THROTTLED: Final = "sb:throttled"
LIMITS: Final = "sb:limits"
RESERVED: Final = "sb:reserved"
VIRTUAL_TIME: Final = "sb:fair:vtime"
WORKERS: Final = "sb:workers"
GATEWAYS: Final = "sb:gateways"
TOTALS: Final = "sb:totals"
WEBHOOK_ENDPOINTS: Final = "sb:webhooks:endpoints"
WEBHOOK_GONE: Final = "sb:webhooks:gone"

USER_HASH_CHARS: Final = 32

# Scores in the queue: virtual times are lower than TIME_SCORE_MIN, times are not. A throttled run, and one that
# waits for its turn in a thread, have THROTTLED_SCORE.
TIME_SCORE_MIN: Final = 10**12
THROTTLED_SCORE: Final = 10**15


def tagged(key: str, tag: str) -> str:
    """Returns the key's name in the partition with this tag; the name itself where there are no partitions."""
    return f"{key}:{{{tag}}}" if tag else key


def totals_of_minute(minute: int, tag: str = "") -> str:
    """Returns the totals over the runs that ended in one minute, a number since 1970 by Redis's clock."""
    return f"{tagged(TOTALS, tag)}:{minute}"


def run(run_id: str) -> str:
    """Returns the hash of a run's record."""
    return f"{RUN_PREFIX}{{{run_id}}}"


def stages(run_id: str) -> str:
    """Returns the list of the stages that a run has begun, `run` first."""
    return f"{RUN_PREFIX}{{{run_id}}}:stages"


def stage_stream(run_id: str, stage_id: str) -> str:
    """Returns the stream of one stage's events."""
    return f"{RUN_PREFIX}{{{run_id}}}:stage:{stage_id}"


def model_items(run_id: str) -> str:
    """Returns the hash of what models wrote for themselves, such as encrypted reasoning, by stage. No client gets it."""
    return f"{RUN_PREFIX}{{{run_id}}}:items"


def results(run_id: str) -> str:
    """Returns the hash of the results that came from outside for a run's calls, of the leases on these, and of tasks."""
    return f"{RUN_PREFIX}{{{run_id}}}:results"


def all_of_run(run_id: str, idempotency: str = "", tag: str = "") -> list[str]:
    """Returns every key that a run may have, including the streams of stages that it has not begun.

    Args:
        idempotency: the key of the client's Idempotency-Key, if it sent one.
        tag: of the run's partition.
    """
    streams = [stage_stream(run_id, stage_id) for stage_id in STAGE_IDS]
    return [
        run(run_id),
        stages(run_id),
        model_items(run_id),
        results(run_id),
        job(run_id, tag),
        *streams,
        *([idempotency] if idempotency else []),
    ]


def feed(tenant: str, tag: str = "") -> str:
    """Returns the stream of what happened to a tenant's runs, and the channel of its live entries."""
    return f"{tagged('sb:feed', tag)}:{tenant}"


def outbox(tag: str = "") -> str:
    """Returns the stream of what webhooks have to be told of."""
    return tagged("sb:outbox", tag)


def outbox_bell(tag: str = "") -> str:
    """Returns the list that wakes a worker when the outbox has entries."""
    return f"{outbox(tag)}:bell"


def polled_tasks(source: str) -> str:
    """Returns the set of the tasks at the server of a tool source, by the time of the next look."""
    return f"sb:tasks:{source}"


def webhook_delivery(delivery_id: str, tag: str = "") -> str:
    """Returns the hash of a webhook's delivery."""
    return f"{tagged('sb:webhook', tag)}:{delivery_id}"


def webhook_open(endpoint: str, tag: str = "") -> str:
    """Returns the set of an endpoint's open deliveries by creation."""
    return f"{tagged('sb:webhooks:open', tag)}:{endpoint}"


def webhook_due(endpoint: str, tag: str = "") -> str:
    """Returns the set of an endpoint's open deliveries by their next try."""
    return f"{tagged('sb:webhooks:due', tag)}:{endpoint}"


def webhook_trying(endpoint: str, tag: str = "") -> str:
    """Returns the set of an endpoint's deliveries that are being sent, by the end of their leases."""
    return f"{tagged('sb:webhooks:trying', tag)}:{endpoint}"


def webhook_ended(state: str, tag: str = "") -> str:
    """Returns the set of the deliveries that ended in a state, by their end."""
    return tagged(f"sb:webhooks:{state}", tag)


def live(run_id: str) -> str:
    """Returns the channel that carries each append to the gateways."""
    return f"{RUN_PREFIX}{{{run_id}}}:live"


def control(run_id: str) -> str:
    """Returns the channel that carries cancels, decisions and results to the run's worker."""
    return f"{RUN_PREFIX}{{{run_id}}}:control"


def runs(tenant: str, user: str = "", tag: str = "") -> str:
    """Returns the set of a tenant's runs, or of those of one user, by creation time."""
    return f"{tagged('sb:runs', tag)}:{_with_user(tenant, user)}"


def active_of_tenant(tenant: str, tag: str = "") -> str:
    """Returns the set of a tenant's runs that have not ended."""
    return f"{tagged(ACTIVE, tag)}:{tenant}"


def seen(kind: str, *, is_partitioned: bool = False) -> str:
    """Returns the set of the members of WORKERS, GATEWAYS or TOOLS by when they were last seen.

    Args:
        is_partitioned: the whole name of the other key is the tag, so that both have one slot.
    """
    return f"sb:seen:{{{kind}}}" if is_partitioned else f"{kind}:seen"


def tenant_virtual_time(tenant: str, tag: str = "") -> str:
    """Returns the key of the virtual time of a tenant's next run."""
    return f"{tagged(VIRTUAL_TIME, tag)}:{tenant}"


def rate(tenant: str, ticket_id: str = "", tag: str = "") -> str:
    """Returns the key of the request quota of a tenant, or of one ticket."""
    quota = f"{tagged('sb:rate', tag)}:{tenant}"
    return f"{quota}:{ticket_id}" if ticket_id else quota


def chat(tenant: str, chat_hash: str, user: str = "") -> str:
    """Returns the key of a chat's newest run."""
    return f"sb:chat:{_with_user(tenant, user)}:{chat_hash}"


def streams(tenant: str, tag: str = "") -> str:
    """Returns the hash of a tenant's open streams by gateway."""
    return f"{tagged('sb:streams', tag)}:{tenant}"


def tokens(tenant: str, tag: str = "") -> str:
    """Returns the hash of a tenant's tokens: those used today, and those reserved by its active runs."""
    return f"{tagged('sb:tokens', tag)}:{tenant}"


def thread(identity: ThreadIdentity) -> str:
    """Returns the hash of a thread. The functions for its other keys take this key."""
    return f"{_THREAD_PREFIX}{{{identity.tag}}}:{identity.digest}"


def is_thread(name: str) -> bool:
    """Returns whether a name is the key of a thread's hash, not the id of a run."""
    return name.startswith(_THREAD_PREFIX)


def tag_of(key: str) -> str:
    """Returns the tag in the key of a thread, or in another key of a partition."""
    return key[key.index("{") + 1 : key.index("}")]


def thread_turns(thread_key: str) -> str:
    """Returns the hash of the fields of all turns and waiting runs."""
    return f"{thread_key}:turns"


def thread_in(thread_key: str) -> str:
    """Returns the hash of each run's own messages."""
    return f"{thread_key}:in"


def thread_out(thread_key: str) -> str:
    """Returns the hash of the messages that each ended run resulted in."""
    return f"{thread_key}:out"


def thread_line(thread_key: str) -> str:
    """Returns the list of the runs that wait for their turn."""
    return f"{thread_key}:line"


def thread_order(thread_key: str) -> str:
    """Returns the set of the turns by activation."""
    return f"{thread_key}:order"


def thread_live(thread_key: str) -> str:
    """Returns the channel that announces changes of a thread's active and waiting runs."""
    return f"{thread_key}:live"


def threads_of_tenant(tag: str, tenant: str) -> str:
    """Returns the set of a tenant's threads in one partition, by their last activity."""
    return f"sb:threads:{{{tag}}}:{tenant}"


def threads_busy(tag: str) -> str:
    """Returns the set of one partition's threads that have an active or a waiting run."""
    return f"sb:threads-busy:{{{tag}}}"


def idempotency(tenant: str, key: str, user: str = "", tag: str = "") -> str:
    """Returns the key that binds the Idempotency-Key of a tenant, or of one user, to a run."""
    return f"{tagged('sb:idempotency', tag)}:{_with_user(tenant, user)}:{key}"


def _with_user(tenant: str, user: str) -> str:
    # No tenant's name has a slash. Users' names are hashed, since they may have any characters, such as braces and colons.
    return f"{tenant}/{sha256(user.encode()).hexdigest()[:USER_HASH_CHARS]}" if user else tenant


def api_key(key_id: str) -> str:
    """Returns the hash of an API key's record."""
    return f"sb:key:{key_id}"


def revoked_session(session_id: str) -> str:
    """Returns the key that exists if a session is revoked."""
    return f"sb:session:{session_id}"


def job_id(run_id: str, tag: str = "") -> str:
    """Returns arq's id of a run's job: the run's own; in a partition in braces, so that arq's keys have the run's slot."""
    return f"{{{run_id}}}" if tag else run_id


def job(run_id: str, tag: str = "") -> str:
    """Returns the key of arq's job."""
    return f"arq:job:{job_id(run_id, tag)}"


def lease(run_id: str, tag: str = "") -> str:
    """Returns arq's in-progress key, which has the holder's token and expires with the lease."""
    return f"arq:in-progress:{job_id(run_id, tag)}"


def provider_slots(provider: str) -> tuple[str, str, str, str]:
    """Returns a provider's keys `held`, `waiting`, `seen` and `requests`."""
    names = ("held", "waiting", "seen", "requests")
    held, waiting, seen, requests = (f"sb:provider:{{{provider}}}:{name}" for name in names)
    return held, waiting, seen, requests


def provider_tokens(provider: str) -> str:
    """Returns the key of a provider's token bucket."""
    return f"sb:provider:{{{provider}}}:tokens"


def provider_freed(provider: str) -> str:
    """Returns the channel that announces released slots to the waiting processes."""
    return f"sb:provider:{{{provider}}}:freed"


def arq_retry(run_id: str, tag: str = "") -> str:
    """Returns the key of arq's count of starts, which is not used: the record has `tries`."""
    return f"arq:retry:{job_id(run_id, tag)}"
