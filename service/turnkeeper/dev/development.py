"""Runs `turnkeeper dev`: starts the parts and shows how far they are, then the page, then the feed until Ctrl-C."""

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TextIO

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from turnkeeper import app, cannot_start, standard_output
from turnkeeper.app import Development, Running
from turnkeeper.bootstrap import background, exit_at_once, report_error, secrets_of
from turnkeeper.dev.command import CANNOT_START, LOG_FILE
from turnkeeper.dev.feed import LiveFeed
from turnkeeper.dev.models import DevModels
from turnkeeper.dev.page import Facts, lines
from turnkeeper.dev.printer import Printer
from turnkeeper.dev.screen_log import ScreenLog, clock
from turnkeeper.dev.watching import WatchedFiles
from turnkeeper.settings import Settings
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper.store.embedded import DatabaseLost
from turnkeeper.telemetry import logs
from turnkeeper.terminal.console import Output
from turnkeeper.terminal.reader_shell import command

_STARTS: Final = ("database", "model", "server")


async def run(settings: Settings, *, shown_level: str) -> int:
    """Runs until Ctrl-C or SIGTERM. Returns the exit status, or ends the process with it."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to standard error past the log, at each failed dial
    own_output = standard_output.claim()  # what tools print goes to standard error
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        log_file = (settings.data_dir / LOG_FILE).open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        report_error("dev", OSError(f"--data-dir {settings.data_dir} cannot be written: {error.strerror}"))
        return CANNOT_START
    secrets = secrets_of(os.environ)
    screen = Screen(settings, own_output, shown_level=shown_level, secrets=secrets)
    log = logs.start(
        level=settings.log_level, replica=settings.replica, secrets=secrets, stream=log_file, as_json=False
    )
    logging.getLogger().addHandler(screen.log)
    try:
        status = await screen.run()
    finally:
        logging.getLogger().removeHandler(screen.log)
        screen.close()
        log.stop()
        log_file.close()
    return status if status == CANNOT_START else exit_at_once(status)


class Screen:
    """The terminal of one run."""

    def __init__(self, settings: Settings, stream: TextIO | None, *, shown_level: str, secrets: Iterable[str]) -> None:
        self._settings = settings
        self._output = Output(stream or open(os.devnull, "w", encoding="utf-8"), os.environ)  # noqa: PTH123, SIM115
        self.printer = Printer(self._output)
        self.log = ScreenLog(self.printer, level="WARNING", secrets=secrets)
        """Shows what is below WARNING only after the page, which stays one screen."""
        self._shown_level = shown_level
        self._models = DevModels(self._wait_for)
        self._address = settings.address(settings.port)
        self._feed = LiveFeed(self.printer, self.log, lambda text: command(text, address=self._address))
        self._shutdown = ShutdownRequest()
        self._status = contextlib.ExitStack()

    async def run(self) -> int:
        """Starts everything, and shows what happens until the end is requested. Returns the exit status."""
        development = Development(
            progress=self._progress,
            provider=self._models.start,
            provider_of=self._models.of,
            answered_by=self._models.name_of,
            observe=self._feed.observe,
        )
        try:
            async with app.serving(
                self._settings, os.environ, shutdown=self._shutdown, development=development
            ) as running:
                self._status.close()
                with self._shutdown.by_signals():
                    await self._serve(running)
        except cannot_start.ERRORS as error:
            self._status.close()
            report_error("dev", error)
            return CANNOT_START
        except DatabaseLost as error:
            report_error("dev", error)
            return 1
        finally:
            self._status.close()
        return 0

    def close(self) -> None:
        """Writes what is left."""
        self.printer.close()

    async def _serve(self, running: Running) -> None:
        self._address = running.address
        console = self._output.console
        for line in lines(self._facts(running), width=console.width, height=console.height):
            self.printer.show(*line)
        self.log.setLevel(self._shown_level)
        watched = WatchedFiles(
            [path for path in (self._settings.agents, self._settings.tools, self._settings.catalogue) if path],
            running.reload,
            reloaded=lambda paths: self._reloaded(paths, running),
            refused=self._refused,
        )
        async with background(watched.run):
            await self._shutdown.wait()
        self.printer.show()
        self.printer.show(
            "Ending. Sessions, turns and approvals are kept in ", (str(self._settings.data_dir), "bold"), "."
        )

    def _facts(self, running: Running) -> Facts:
        own = bool(self._settings.mongodb_uri)
        return Facts(
            address=running.address,
            agents=[(agent, running.toolbox.offered(agent)) for agent in running.agents.values()],
            model=self._models.description,
            data=f"{self._settings.data_dir}: {'' if own else 'the database, '}{LOG_FILE}",
            identity=self._settings.identity,
            notes=[self._models.problem] if self._models.problem else [],
        )

    def _progress(self, part: str) -> None:
        """Shows which part starts now, on a terminal until it has started."""
        self._wait_for(f"starting the {part} ({_STARTS.index(part) + 1} of {len(_STARTS)})")

    def _wait_for(self, what: str) -> None:
        """Shows what is waited for: on a terminal with the time until the next such line, elsewhere as a line."""
        self._status.close()
        if self._output.is_terminal:
            columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
            shown = Progress(*columns, console=self._output.console, transient=True)
            self._status.enter_context(shown).add_task(what, total=None)
        else:
            self._output.show(what)

    def _reloaded(self, paths: Sequence[Path], running: Running) -> None:
        for path in paths:
            is_agents = path == self._settings.agents
            what = "new sessions get the new agents" if is_agents else "the next call runs the new tools"
            self._say(f"{path} reloaded: {what}", "green")
        for agent in running.agents.values():
            if not running.toolbox.offered(agent) and agent.tools:
                self._say(f"{agent.name} has none of the tools that it names", "yellow")

    def _refused(self, error: Exception) -> None:
        self._say(f"{error}; the last good files stay in effect".replace(".;", ";"), "red")

    def _say(self, text: str, style: str) -> None:
        self.printer.show(clock(time.time()), " ", (text, style))
