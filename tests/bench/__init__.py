"""`make bench`: what a turn costs, beside floors that are measured in the same run.

How to add a measure: write a module in `tests/bench/measures/` with an async function that takes a `Bench` and gives
rows, and name it in `tests/bench/measures/__init__.py`:

    async def watchers(bench: Bench) -> list[Row]:
        subject = await bench.parts.subject()                # `turnkeeper serve`, shared by all measures
        floor = await bench.parts.floor("replay", file)      # tests/bench/floors/replay.py, a process of its own
        per_event = await bench.alternate({                  # A B A B …, `bench.scale.rounds` of each
            "subject": lambda: round_of(subject),            # each gives a figure, or anything else
            "F3": lambda: round_of(floor),
        })
        return [row("watch.cpu", "CPU per event", per_event["subject"], unit="µs", floor=per_event["F3"])]

    MEASURES = (Measure("watchers", "events to 100 subscribers", watchers),)

- Clients run in the load generator's process: `await bench.parts.load.run(job, address=…, …)`, where `job` is an async
  function of a module (best in `tests/bench/jobs/`) that takes the channels first and else what JSON can carry.
- `async with bench.window(subject) as spent:` around that; then `spent.server` and `spent.database` are CPU seconds.
- A goal belongs into `goals.py`, by the row's name. A run that must not count raises `Invalid`.
- `bench.scale` is how much to do; with `bench.scale.quick` a measure takes less than 10 s, and
  one of load or live streams one to three minutes.
"""
