// A conversation with `useThread`, as an application would show it: for test_use_thread.py, which bundles it.

import { createRoot } from "react-dom/client";

import { Stagebus, turnText } from "../../clients/js/src/index.ts";
import { useThread } from "../../clients/js/src/react.ts";

const client = new Stagebus();
const query = new URLSearchParams(location.search);

function Chat() {
  const { state, turns, active, send, stop, error } = useThread(client, query.get("thread"), { model: query.get("model") });
  const submit = (event) => {
    event.preventDefault();
    void send(new FormData(event.target).get("message"));
    event.target.reset();
  };
  return (
    <main data-status={active ? "busy" : "idle"} data-transport={state.connection.transport}>
      {turns.map((turn) => (
        <section key={turn.runId}>
          <b>{turn.messages.map(({ content }) => content).join()}</b>
          <p>{turnText(turn)}</p>
        </section>
      ))}
      <form onSubmit={submit}>
        <input aria-label="Message" name="message" />
      </form>
      <button onClick={stop}>Stop</button>
      <p role="alert">{error?.message}</p>
    </main>
  );
}

createRoot(document.body).render(<Chat />);
