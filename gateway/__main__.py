"""`python -m gateway`: one gateway process, or several on one port."""

from shared.collector import paused

if __name__ == "__main__":
    with paused():
        from gateway.command import main
    main()
