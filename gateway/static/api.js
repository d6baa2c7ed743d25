// The gateway that serves this page.

import { Stagebus } from "./vendor/stagebus-client.js";

export const client = new Stagebus();
