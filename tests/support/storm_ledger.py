"""The ledger of a storm: counts of what happened, and of what must not."""

from collections import Counter
from dataclasses import dataclass, field

from tests.support.thread_ledger import ThreadLedger

ZEROS = (
    "violations",
    "stranded",
    "wrong_texts",
    "paid_twice",
    "untold",
    "immortal_keys",
    "left_active",
    "left_reserved",
)


@dataclass
class Ledger:
    """Counts of what happened."""

    seed: int
    runs: int = 0
    events: int = 0
    connections: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    decisions: Counter[int] = field(default_factory=Counter)  # by the status that the gateway answered
    results: Counter[int] = field(default_factory=Counter)  # of waiting calls, and claims on them, likewise
    stage_restarts: int = 0
    views: Counter[str] = field(default_factory=Counter)  # clients of each
    violations: list[str] = field(default_factory=list)  # lost, doubled, reordered
    stranded: list[str] = field(default_factory=list)
    wrong_texts: list[str] = field(default_factory=list)
    paid_twice: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)  # ends that the webhook was not told of, or others
    immortal_keys: list[str] = field(default_factory=list)
    threads: ThreadLedger = field(default_factory=ThreadLedger)
    left_active: int = 0
    left_reserved: int = 0  # tokens

    @property
    def zeros(self) -> dict[str, list[str] | int]:
        """Returns those counts that must be 0, of runs and of conversations."""
        own = {name: getattr(self, name) for name in ZEROS}
        of_threads = {
            f"threads' {name}": value for name, value in vars(self.threads).items() if isinstance(value, list)
        }
        return own | of_threads

    @property
    def is_clean(self) -> bool:
        return not any(self.zeros.values())

    def __str__(self) -> str:
        counts = {name: value if isinstance(value, int) else len(value) for name, value in self.zeros.items()}
        threads = self.threads
        lines = [
            f"seed {self.seed}: {self.runs} runs, {self.events} events received over {self.connections} connections",
            f"ends: {dict(self.ends)}; stages restarted: {self.stage_restarts}",
            f"faults: {dict(self.faults)}",
            f"answers to decisions: {dict(self.decisions)}, to results and claims: {dict(self.results + threads.results)}",
            f"clients of views: {dict(self.views)}",
            f"threads: {threads.threads}, {threads.turns} turns, {threads.events} events over {threads.connections} connections",
            f"posts to threads: {dict(threads.posts)}; accepted ones became: {dict(threads.outcomes)}",
            ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()),
        ]
        for name, value in self.zeros.items():
            if not isinstance(value, int):
                lines += [f"{name}: {item}" for item in value[:5]]
        return "\n".join(lines)
