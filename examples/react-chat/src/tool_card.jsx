import { useState } from "react";

const STATES = {
  "input-available": "running",
  "approval-requested": "waits for you",
  "output-available": "done",
  "output-error": "failed",
  "output-denied": "denied",
};

/** Shows a call, which Stagebus runs. One that needs approval waits until somebody decides, in this tab or elsewhere. */
export function ToolCard({ runId, call }) {
  const [problem, setProblem] = useState(null);

  async function decide(decision) {
    const callId = call.toolCallId.slice(runId.length + 1);
    const response = await fetch(`/runs/${runId}/approvals/${encodeURIComponent(callId)}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ decision }),
    });
    if (!response.ok) setProblem((await response.json()).detail);
  }

  return (
    <section data-state={call.state} aria-label={`Call of ${call.toolName}`}>
      <header>
        <strong>{call.toolName}</strong> <span>{STATES[call.state] ?? call.state}</span>
      </header>
      <pre>{JSON.stringify(call.input, null, 2)}</pre>
      {call.state === "output-available" && <pre>{asText(call.output)}</pre>}
      {call.state === "output-error" && <pre>{call.errorText}</pre>}
      {call.state === "approval-requested" && (
        <footer>
          <button onClick={() => decide("approve")}>Approve</button>
          <button onClick={() => decide("deny")}>Deny</button>
        </footer>
      )}
      {problem && <p role="alert">{problem}</p>}
    </section>
  );
}

function asText(output) {
  return typeof output === "string" ? output : JSON.stringify(output, null, 2);
}
