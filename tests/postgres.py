"""A PostgreSQL server of the tests' own, as Debian packages it: on a unix socket, in a directory that goes with it."""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa


def find(program: str) -> Path | None:
    """A program of PostgreSQL, which Debian keeps out of PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    found = shutil.which(program) or (debian[-1] if debian else None)
    return found and Path(found).resolve()


class PostgresServer:
    """A server that can be stopped and started."""

    def __init__(self, directory: Path) -> None:
        initdb = find("initdb")
        if initdb is None:
            pytest.skip("no initdb: PostgreSQL is not installed (Debian: apt-get install postgresql)")
        self.programs, self.directory = initdb.parent, directory
        self.numbers = itertools.count()
        # It refuses to run as root; Debian's package brings a user for it.
        users = {entry.pw_name for entry in pwd.getpwall()}
        self.user = None if os.geteuid() else "postgres" if "postgres" in users else "nobody"
        if self.user:
            shutil.chown(directory, self.user)
        self.run("initdb", "-D", directory / "data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def run(self, program: str, *arguments: object) -> None:
        """Run one of PostgreSQL's programs as the server's user."""
        command = [str(self.programs / program), *map(str, arguments)]
        groups = {"group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []} if self.user else {}
        log = self.directory / "output"
        with log.open("ab") as output:  # no pipe: the server would keep it open
            done = subprocess.run(
                command, stdout=output, stderr=output, cwd=self.directory, user=self.user, check=False, **groups
            )
        assert done.returncode == 0, log.read_text()

    def start(self) -> None:
        """Start, and wait until it answers."""
        # fsync is for when the machine goes down; here only processes do
        options = f"-k {self.directory} -c listen_addresses='' -c fsync=off"
        self.run("pg_ctl", "-D", self.directory / "data", "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stop at once, as a crash would."""
        self.run("pg_ctl", "-D", self.directory / "data", "-w", "-m", "immediate", "stop")

    def url(self, database: str) -> str:
        """A URL as a user would write it."""
        return f"postgresql://tester:s3cret@/{database}?host={self.directory}"

    @contextmanager
    def session(self, database: str = "postgres") -> Iterator[sa.Connection]:
        """A connection beside the log's, in autocommit."""
        engine = sa.create_engine(self.url(database).replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection
        engine.dispose()

    def new_database(self, options: str = "") -> str:
        """The URL of an empty database."""
        name = f"log{next(self.numbers)}"
        with self.session() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} {options}")
        return self.url(name)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that runs within the block; skips without PostgreSQL."""
    directory = Path(tempfile.mkdtemp(prefix="esr-"))  # a short path, which another user may enter
    try:
        server = PostgresServer(directory)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
