"""Durable background runs of LLM toolchains. Import `stagebus.client`, `stagebus.tools` and `stagebus.events`."""
