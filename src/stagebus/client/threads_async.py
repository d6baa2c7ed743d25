"""Conversations: threads of runs, for asyncio."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Unpack

from stagebus.client import api_requests, thread_requests
from stagebus.client.api_requests import Json, RunFields
from stagebus.client.client_tools_async import AsyncThreadAnswerer
from stagebus.client.connection_state import ConnectionState
from stagebus.client.open_calls import ClientTools
from stagebus.client.thread_requests import OnActive, ThreadFilters
from stagebus.client.thread_sequencer import ThreadEvent, ThreadSequencer
from stagebus.client.thread_state import ThreadState

if TYPE_CHECKING:
    from stagebus.client.asynchronous import AsyncRun, AsyncStagebus


class AsyncThreads:
    """The threads of a gateway."""

    def __init__(self, client: "AsyncStagebus") -> None:
        self._client = client

    def open(self, thread_id: str, cursor: str = "") -> "AsyncThread":
        """Return a thread, to be followed from the event after `cursor`. Sends no request.

        Raises:
            BadCursor: the cursor is not an event id of a thread and does not mean the start.
        """
        return AsyncThread(self._client, thread_id, cursor)

    async def send(
        self,
        thread_id: str,
        prompt: str | None = None,
        *,
        on_active: OnActive | None = None,
        parent_run_id: str | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[RunFields],
    ) -> "AsyncRun":
        """Send a message to a thread, which its first message creates, and return the run that answers it.

        Retries of the request do not send the message again.

        Args:
            prompt: the message; without it `fields` has `messages`, only the new ones.
            on_active: what happens while another run of the thread is active: `reject` (the default), `enqueue`,
                `interrupt` or `steer`.
            parent_run_id: the run to continue from, to edit or to ask again; `root` for a new beginning.

        Raises:
            Conflict: another run is active; `exc.problem["run_id"]` names it.
            Refused: the request is invalid, or the gateway cannot accept it now.
        """
        given = {"user_prompt": prompt, "on_active": on_active, "parent_run_id": parent_run_id}
        body = thread_requests.send_fields(thread_id, given, {**fields})
        answer = await self._client.send(api_requests.create_run(body, idempotency_key))
        return self._client.runs.resume(answer["id"])

    async def get(self, thread_id: str, *, branch: str | None = None, before: str | None = None) -> Json:
        """Get a thread: its title, its turns and branches, the runs that wait, and a page of a branch's messages.

        Args:
            branch: the last run of the branch whose messages are wanted; default: the current branch.
            before: the page of messages before these: `branch.before` of the page after it.
        """
        return await self._client.send(thread_requests.get_thread(thread_id, branch, before))

    async def list(self, limit: int = 20, before: str | None = None, **filters: Unpack[ThreadFilters]) -> Json:
        """List threads, the last active one first, as `threads` and `next`. Pass `next` as `before` for the next page."""
        return await self._client.send(thread_requests.list_threads(limit, before, filters))


class AsyncThread:
    """One thread; `async for` yields the events of all its turns, each once, and then waits for further turns.

    Attributes:
        state: built from the events received so far.
        connection: how the events arrive, and what a silent run waits for.
    """

    def __init__(self, client: "AsyncStagebus", thread_id: str, cursor: str = "") -> None:
        self.id = thread_id
        self.state = ThreadState()
        self.connection = ConnectionState(on_change=client.on_connection)
        self._client = client
        self._sequencer = ThreadSequencer(cursor)

    @property
    def cursor(self) -> str:
        """The id of the last event; all that a client must keep to continue later."""
        return self._sequencer.cursor

    def __aiter__(self) -> AsyncIterator[ThreadEvent]:
        return self.events()

    async def events(
        self, *, until_idle: bool = False, tools: ClientTools | None = None
    ) -> AsyncGenerator[ThreadEvent, None]:
        """Yield the events after `cursor`. In `contextlib.aclosing`, leaving the loop closes the stream.

        Args:
            until_idle: end when no run of the thread is active and none waits; otherwise wait for further turns.
            tools: functions by the name of the client tool whose calls they answer meanwhile, in the background.

        Raises:
            NotFound: there is no such thread, or no longer.
        """
        path = thread_requests.events_path(self.id, until_idle=until_idle)
        self._sequencer.is_ended = False
        answering = AsyncThreadAnswerer(self._client, tools or {})
        try:
            async for received in self._client.follow(path, self._sequencer, self.connection):
                self.state.apply(received)
                answering.on_event(received)
                yield received
        finally:
            await answering.aclose()

    async def send(
        self,
        prompt: str | None = None,
        *,
        on_active: OnActive | None = None,
        parent_run_id: str | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[RunFields],
    ) -> "AsyncRun":
        """Send a message to the thread; see `threads.send`."""
        return await self._client.threads.send(
            self.id,
            prompt,
            on_active=on_active,
            parent_run_id=parent_run_id,
            idempotency_key=idempotency_key,
            **fields,
        )

    async def edit(self, run_id: str, prompt: str, **fields: Unpack[RunFields]) -> "AsyncRun":
        """Send another message in place of that of a turn. The turn and what followed it stay, on another branch."""
        parent_run_id = (await self._turn(run_id))["parent_run_id"]
        return await self.send(prompt, parent_run_id=parent_run_id or thread_requests.ROOT, **fields)

    async def regenerate(self, run_id: str, **fields: Unpack[RunFields]) -> "AsyncRun":
        """Answer the message of a turn once more. The first answer stays, on another branch."""
        turn = await self._turn(run_id)
        parent_run_id = turn["parent_run_id"] or thread_requests.ROOT
        return await self.send(parent_run_id=parent_run_id, **{**fields, "messages": turn["messages"]})

    async def stop(self, reason: str | None = None) -> None:
        """Cancel the active run, if there is one; what it has written stays, as a partial answer."""
        active = (await self.get())["active_run_id"]
        if active is not None:
            await self._client.runs.resume(active).cancel(reason)

    async def get(self, *, branch: str | None = None, before: str | None = None) -> Json:
        """Get the thread; see `threads.get`."""
        return await self._client.threads.get(self.id, branch=branch, before=before)

    async def markdown(self) -> str:
        """Get the current branch as a transcript in Markdown."""
        transcript = b""
        async for part in self._client.download(thread_requests.get_transcript(self.id)):
            transcript += part
        return transcript.decode()

    async def update(self, *, title: str | None = None, metadata: dict[str, str] | None = None) -> Json:
        """Set the thread's title, its metadata, or both."""
        return await self._client.send(thread_requests.update_thread(self.id, title, metadata))

    async def delete(self) -> None:
        """Delete the thread with all its runs. An active one is cancelled first."""
        await self._client.send(thread_requests.delete_thread(self.id))

    async def _turn(self, run_id: str) -> Json:
        thread = await self.get(branch=run_id)
        return dict(thread["branch"]["turns"][-1])
