"""The tool `ask_user`, by which a model asks a person. It never runs: the tools stage waits for the answer instead."""


def ask_user(question: str) -> str:
    """Ask the user for something that only they know, and wait for their answer.

    Args:
        question: what to ask, in the user's language; one question at a time.
    """
    raise NotImplementedError(f"the tools stage must ask {question!r}")
