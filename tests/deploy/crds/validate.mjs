// Reads custom resources as a JSON list from stdin, and prints a line for each that its schema refuses.
import { readFileSync } from "node:fs";
import { v1alpha1 } from "@kubernetes-models/keda/keda.sh";
import { v1 } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com";

const models = { ...v1alpha1, ...v1 };
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new models[resource.kind](resource).validate();
  } catch (error) {
    console.log(`${resource.kind}: ${error.message}`);
  }
}
