// The functions of a component that answer the calls of client tools.

import { useCallback, useEffect, useRef } from "react";

import type { ClientTools } from "./client_tools.js";

export interface UseRunOptions {
  /** Functions that answer the calls of client tools while the component is mounted; those of the last render. */
  tools?: ClientTools;
}

/** Returns a function, the same in every render, that returns the tools of the last one. */
export function useLatestTools(tools: ClientTools | undefined): () => ClientTools {
  const latest = useRef<ClientTools>({});
  useEffect(() => {
    latest.current = tools ?? {};
  });
  return useCallback(() => latest.current, []);
}
