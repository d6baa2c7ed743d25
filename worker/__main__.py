"""`python -m worker`: one worker process."""

from shared.collector import paused

if __name__ == "__main__":
    with paused():
        from worker.command import main
    main()
