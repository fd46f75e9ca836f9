"""How a fault is done to the processes, to what lies between them, and to what is around them."""

import asyncio
import random
import re
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import LiteralString

import psutil
import psycopg

from tests.faults.load import Load, Receiver
from tests.faults.schedule import STEPS, Fault, How
from tests.faults.servers import Servers
from tests.faults.wire import Call, Moment
from tests.stripe_server import StripeServer

PATIENCE_SECONDS = 30.0
"""How long a worst moment is waited for; the load goes on meanwhile until the next fault is due."""

BACK_SECONDS = 45.0
"""How long a killed process may take to be started again."""

WORKER_TELLS = 400
STARTER_TELLS = 150
"""From how many bytes on a call is no poll for work and no question whether the server is well."""

_LOOK_SECONDS = 0.05

_REFUSALS = (503,) * 10_000

_NO_ROOM = (b"No space left on device", b"File too large")

_BETWEEN_TWO: LiteralString = """
SELECT EXISTS (
    SELECT FROM grant_lot open JOIN grant_lot over USING (referral_id)
    WHERE open.expired_at IS NULL AND open.voided_at IS NULL
        AND over.grant_id = (SELECT grant_id FROM entry WHERE kind = 'expiry' ORDER BY entry_id DESC LIMIT 1))
"""

_CONCERNS: dict[str, LiteralString] = {
    # An event that concerns no referral yet has nobody to tell.
    "event stored": """
SELECT EXISTS (
    SELECT FROM referral JOIN customer ON customer.account_id = referral.referee_id JOIN paid_period USING (customer_id)
    WHERE referral.stage IN ('clicked', 'signed_up'))
""",
}
"""What has to be so, that the moment of a step is the one that is waited for."""


class Blows:
    """Strikes, and says whether it hit."""

    def __init__(self, servers: Servers, load: Load, stripe: StripeServer, receiver: Receiver) -> None:
        """Strike at these processes, and at others' servers, under this load."""
        self._servers = servers
        self._stripe = stripe
        self._receiver = receiver
        self._load = load
        self._processes = servers.processes

    async def strike(self, fault: Fault, chance: random.Random) -> bool:
        """Do it, and wait until it is over; whether it happened."""
        match fault.how:
            case How.KILL:
                await asyncio.sleep(chance.uniform(0, 0.8))
                return await self._kill(fault.whom)
            case How.STOP:
                await asyncio.sleep(chance.uniform(0, 0.8))
                return await self._stop(fault.whom, fault.seconds)
            case How.CRASH:
                await asyncio.sleep(chance.uniform(0, 0.8))
                return await self._crash()
            case How.CUT:
                await asyncio.sleep(chance.uniform(0, 0.8))
                return await self._cut(fault.whom, fault.what, fault.seconds)
            case How.WORST:
                return await self._worst(fault)
            case How.ANSWER:
                return await self._answer(fault)
            case How.DISK:
                return await self._fill_disk(fault.seconds)
            case How.CLOCK:
                return await self._move_clock(float(fault.what), fault.seconds)
            case How.AWAY:
                return await self._away(fault.whom, fault.seconds)
            case How.LOST:
                return await self._lose(fault.seconds)

    async def _kill(self, name: str) -> bool:
        before = await self._up(name)
        self._processes.signal(name, signal.SIGKILL)
        return before is not None and await self._back(name, before)

    async def _up(self, name: str) -> int | None:
        """The pid of a process, which may have to be started again first."""
        await _until(lambda: self._processes.one(name) is not None, BACK_SECONDS)
        process = self._processes.one(name)
        return process.pid if process else None

    async def _back(self, name: str, before: int) -> bool:
        def another() -> bool:
            process = self._processes.one(name)
            return process is not None and process.pid != before

        return await _until(another, BACK_SECONDS)

    async def _stop(self, name: str, seconds: float) -> bool:
        await self._up(name)
        try:
            stopped = self._processes.signal(name, signal.SIGSTOP)
            await asyncio.sleep(seconds)
        finally:
            self._processes.signal(name, signal.SIGCONT)
        return stopped > 0

    async def _crash(self) -> bool:
        await self._up("postgres")
        serving: list[psutil.Process] = []
        for process in self._processes.tree("postgres")[1:]:
            with suppress(psutil.Error):
                if "referrals_app" in " ".join(process.cmdline()):
                    serving.append(process)
        if not serving:
            return False
        with suppress(psutil.NoSuchProcess):
            serving[0].send_signal(signal.SIGKILL)
            return True
        return False

    async def _cut(self, program: str, server: str, seconds: float) -> bool:
        wire = self._servers.to_postgres if server == "postgres" else self._servers.to_temporal
        await _until(lambda: wire.connections(program) > 0, BACK_SECONDS)
        cut = wire.cut(program, seconds)
        await asyncio.sleep(seconds)
        return cut > 0

    async def _worst(self, fault: Fault) -> bool:
        how, _, step = fault.what.partition(": ")
        moment = Moment(
            fault.whom,
            re.compile(STEPS[step], re.DOTALL),
            self._blow(how, fault.whom, fault.seconds),
            before=how == "kill before",
            passes=how in ("away", "temporal"),
            wanted=self._asks(_BETWEEN_TWO if how == "between" else _CONCERNS.get(step)),
        )
        wire = self._servers.to_postgres
        wire.moment = moment
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await moment.met.wait()
        except TimeoutError:
            return False
        finally:
            wire.moment = None
            moment.over = True
        if fault.seconds:
            await asyncio.sleep(fault.seconds)
        return True

    def _blow(self, how: str, whom: str, seconds: float) -> Callable[[], Awaitable[None]]:
        victims = {"postgres": "postgres", "temporal": "temporal"}

        async def blow() -> None:
            match how:
                case "cut":
                    return
                case "away":
                    self._servers.to_temporal.cut(whom, seconds)
                case _:
                    self._processes.signal(victims.get(how, whom), signal.SIGKILL)

        return blow

    def _asks(self, question: LiteralString | None) -> Callable[[], Awaitable[bool]] | None:
        """Whether it is the moment, asked of the database; none where every one is."""
        if question is None:
            return None

        def look() -> bool:
            with self._servers.superuser() as connection:
                found = connection.execute(question).fetchone()
            return bool(found and found[0])

        return partial(asyncio.to_thread, look)

    async def _answer(self, fault: Fault) -> bool:
        least = WORKER_TELLS if fault.whom == "worker" else STARTER_TELLS
        call = Call(fault.whom, least, self._blow(fault.what, fault.whom, 0.0))
        self._servers.to_temporal.call = call
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await call.met.wait()
        except TimeoutError:
            return False
        finally:
            self._servers.to_temporal.call = None
        return True

    async def _fill_disk(self, seconds: float) -> bool:
        disk, log = self._servers.disk, self._servers.postgres_log
        await self._up("postgres")
        known = log.stat().st_size
        felt = False
        try:
            await asyncio.to_thread(disk.fill)
            deadline = time.monotonic() + PATIENCE_SECONDS
            until = deadline
            while time.monotonic() < until:
                await asyncio.to_thread(disk.keep_full)
                if not felt:
                    said = log.read_bytes()[known:] if log.stat().st_size >= known else log.read_bytes()
                    if any(words in said for words in _NO_ROOM):
                        felt = True
                        until = min(deadline, time.monotonic() + seconds)
                await asyncio.sleep(0.1)
        finally:
            await asyncio.to_thread(disk.free)
        return felt

    async def _move_clock(self, by: float, seconds: float) -> bool:
        try:
            await self._set_clock(by)
            await asyncio.sleep(seconds)
        finally:
            await self._set_clock(0)
        return True

    async def _set_clock(self, by: float) -> None:
        deadline = time.monotonic() + BACK_SECONDS
        while True:
            try:
                await asyncio.to_thread(partial(self._servers.move_ledger_clock, by))
            except psycopg.Error:
                if time.monotonic() > deadline:
                    raise
            else:
                self._servers.to_postgres.cut()
                return
            await asyncio.sleep(0.2)

    async def _away(self, whose: str, seconds: float) -> bool:
        """Refuse everybody for some seconds from the first one on who asks."""
        stripe, receiver = self._stripe, self._receiver
        before = receiver.refused

        def refused() -> bool:
            return len(stripe.failures) < len(_REFUSALS) if whose == "stripe" else receiver.refused > before

        if whose == "stripe":
            stripe.failures.extend(_REFUSALS)
        else:
            receiver.out_of_order = True
        try:
            felt = await _until(refused, PATIENCE_SECONDS)
            await asyncio.sleep(seconds)
        finally:
            stripe.failures.clear()
            receiver.out_of_order = False
        return felt

    async def _lose(self, seconds: float) -> bool:
        lost = self._load.lost_events
        self._load.losing = True
        try:
            await _until(lambda: self._load.lost_events > lost, PATIENCE_SECONDS)
            await asyncio.sleep(seconds)
        finally:
            self._load.losing = False
        self._load.reconcile_soon()
        return self._load.lost_events > lost


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for something that nobody tells of, so long at most; whether it came."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[bool] = loop.create_future()
    deadline = loop.time() + seconds

    def look() -> None:
        if came.done():
            return
        if condition():
            came.set_result(True)
        elif loop.time() > deadline:
            came.set_result(False)
        else:
            loop.call_later(_LOOK_SECONDS, look)

    look()
    return await came
