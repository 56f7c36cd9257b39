"""Language models behind one contract: any OpenAI-compatible server, a small local one, a scripted one for tests."""
