"""The Redis key schema. Every key is built here and nowhere else.

    sb:run:{<run_id>}                 hash    the run record                     TTL: from birth, see Settings
    sb:run:{<run_id>}:stages          list    the stages begun, in order         TTL: as the record
    sb:run:{<run_id>}:stage:<stage>   stream  the stage's events                 TTL: as the record
    sb:run:{<run_id>}:live            channel each append, as SSE bytes
    sb:run:{<run_id>}:control         channel cancel, a decision
    sb:runs:<tenant>                  zset    run ids by creation time, ms       trimmed at each creation
    sb:active                         zset    runs that have not ended           emptied as they end
    sb:active:<tenant>                zset    those of one tenant                trimmed at each creation; TTL: a run's life
    sb:running                        zset    "<tenant> <run_id>" of runs that were taken and neither ended nor
                                              were given back                    emptied as they leave
    sb:throttled                      zset    "<tenant> <run_id>" of due runs whose tenant has enough running
    sb:fair:vtime                           string  the turn that was taken last       TTL: a run's life
    sb:fair:vtime:<tenant>                  string  the tenant's next turn             TTL: a run's life
    sb:limits                         hash    "<tenant>:<limit>": a tenant's own limits; the operator writes it
    sb:rate:<tenant>                  string  when all its requests are back, µs TTL: until then
    sb:streams:<tenant>               hash    "<open> <until, ms>" by gateway    TTL: half a minute
    sb:tokens:<tenant>                hash    day (since 1970, UTC), used        TTL: two days
    sb:idempotency:<tenant>:<key>     string  "<run_id> <body hash>"             TTL: as its run
    sb:key:<key_id>                   hash    an API key: tenant, scopes, hash   TTL: until it expires, if it does
    sb:keys                           zset    API key ids by last use, Unix ms
    sb:queue                          zset    arq's queue; score = a new run's turn, the end of a lease, a due
                                              time (Unix ms), or NEVER
    sb:wakeup                           list    the doorbell of waiting workers    bounded
    sb:tools                          hash    a tool's description, JSON, by name; the workers write it
    sb:tools:seen                     zset    tools by when a worker last said that it has them, ms; trimmed
    sb:workers, sb:gateways           hash    what each process is at, JSON, by name; see shared/store/heartbeats.py
                                                                                 TTL: a few seconds of silence
    sb:workers:seen, sb:gateways:seen zset    processes by when they last spoke, ms; trimmed; TTL: the same
    sb:totals                         hash    what all ended runs came to: events, tokens, runs_<status>
    sb:sweep                          string  who sweeps now                     TTL: sweep_s
    sb:provider:{<name>}:held         zset    slots held; score = when each expires, ms      TTL: of the last slot
    sb:provider:{<name>}:waiting      zset    requests that wait for a slot; score = since when, ms   TTL: as `seen`
    sb:provider:{<name>}:seen         zset    the same; score = when each is removed, ms     TTL: of the last one
    sb:provider:{<name>}:requests     zset    requests of the last minute; score = ms        TTL: 60 s
    sb:provider:{<name>}:tokens       string  when the token bucket is full again, us        TTL: until then
    sb:provider:{<name>}:freed        channel a slot was released while a request waited
    arq:job:<run_id>                  string  arq's job, JSON
    arq:in-progress:<run_id>          string  the lease: its holder's token      TTL: lease_s
    arq:retry:<run_id>                string  arq's own count, not used here

The braces are a hash tag: all keys of one run hash to one slot, so one Lua
script may name several of them.
Spec: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from typing import Final

RUN_PREFIX: Final = "sb:run:"
ACTIVE: Final = "sb:active"
QUEUE: Final = "sb:queue"
WAKEUP: Final = "sb:wakeup"
# More entries would wake no more workers: each worker takes all the due runs that it can hold.
WAKEUPS_MAX: Final = 256
SWEEP: Final = "sb:sweep"
TOOLS: Final = "sb:tools"
API_KEYS: Final = "sb:keys"
TOOLS_SEEN: Final = "sb:tools:seen"
RUNNING: Final = "sb:running"
THROTTLED: Final = "sb:throttled"
LIMITS: Final = "sb:limits"
VIRTUAL_TIME: Final = "sb:fair:vtime"
WORKERS: Final = "sb:workers"
GATEWAYS: Final = "sb:gateways"
TOTALS: Final = "sb:totals"

# What a score in the queue may be: a turn, from FIRST_TIME on a time, and NEVER for what is held back.
TIME_SCORE_MIN: Final = 10**12
THROTTLED_SCORE: Final = 10**15


def run(run_id: str) -> str:
    """The hash of a run's record."""
    return f"{RUN_PREFIX}{{{run_id}}}"


def stages(run_id: str) -> str:
    """The list of the stages that a run has begun, `run` first."""
    return f"{RUN_PREFIX}{{{run_id}}}:stages"


def stage_stream(run_id: str, stage_id: str) -> str:
    """The stream of one stage's events."""
    return f"{RUN_PREFIX}{{{run_id}}}:stage:{stage_id}"


def live(run_id: str) -> str:
    """The channel that carries each append to the gateways."""
    return f"{RUN_PREFIX}{{{run_id}}}:live"


def control(run_id: str) -> str:
    """The channel on which a worker hears of a cancel or a decision."""
    return f"{RUN_PREFIX}{{{run_id}}}:control"


def runs(tenant: str) -> str:
    """A tenant's runs by creation time."""
    return f"sb:runs:{tenant}"


def active_of_tenant(tenant: str) -> str:
    """A tenant's runs that have not ended."""
    return f"{ACTIVE}:{tenant}"


def seen(kind: str) -> str:
    """When each process of a kind, WORKERS or GATEWAYS, last spoke."""
    return f"{kind}:seen"


def tenant_virtual_time(tenant: str) -> str:
    """The turn of a tenant's next run."""
    return f"{VIRTUAL_TIME}:{tenant}"


def rate(tenant: str) -> str:
    """When a tenant has all its requests back."""
    return f"sb:rate:{tenant}"


def streams(tenant: str) -> str:
    """How many streams of a tenant each gateway holds."""
    return f"sb:streams:{tenant}"


def tokens(tenant: str) -> str:
    """How many tokens a tenant has used today."""
    return f"sb:tokens:{tenant}"


def idempotency(tenant: str, key: str) -> str:
    """What an Idempotency-Key of a tenant made."""
    return f"sb:idempotency:{tenant}:{key}"


def api_key(key_id: str) -> str:
    """The record of an API key."""
    return f"sb:key:{key_id}"


def job(run_id: str) -> str:
    """arq's job; its id is the run's."""
    return f"arq:job:{run_id}"


def lease(run_id: str) -> str:
    """arq's in-progress key, which holds the token of the run's holder and expires with the lease."""
    return f"arq:in-progress:{run_id}"


def provider_slots(provider: str) -> tuple[str, str, str, str]:
    """Returns a provider's keys `held`, `waiting`, `seen` and `requests`."""
    names = ("held", "waiting", "seen", "requests")
    held, waiting, seen, requests = (f"sb:provider:{{{provider}}}:{name}" for name in names)
    return held, waiting, seen, requests


def provider_tokens(provider: str) -> str:
    """What a provider's limit of tokens a minute is counted by."""
    return f"sb:provider:{{{provider}}}:tokens"


def provider_freed(provider: str) -> str:
    """The channel on which those who wait for a slot hear that one came back."""
    return f"sb:provider:{{{provider}}}:freed"


def arq_retry(run_id: str) -> str:
    """arq's count of starts; ours are the record's tries."""
    return f"arq:retry:{run_id}"
