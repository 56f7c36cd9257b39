"""The program of `make run`. Ctrl-C ends it quietly from here on."""

from turnkeeper import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()
    from tests.demo import parts_left_running
    from turnkeeper.bootstrap import exit_at_once

    exit_at_once(parts_left_running.main())
