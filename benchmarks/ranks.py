"""Several ranks on one machine: ratios of times, counts, and memory.

    python -m benchmarks.ranks
    python -m benchmarks.ranks --ranks 1 2 --repeats 5

Ranks are processes on gloo with one thread each, which share the processors of the machine, so the
results do not show how fast ranks on machines of their own are. Each run alternates between the
loss with a whole bank and with a sharded bank of the same total size, at three sizes; times are
kept as ratios. Messages, flops of the products, bytes of the banks and resident memory do not
depend on the speed of the machine.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import write_record
from benchmarks._measure.environment import look_at_machine
from benchmarks._ranks.measurements import BASE, Row, measure, merged
from benchmarks._ranks.pool import Ranks


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the results, and write them to a JSON."""
    parser = command_parser("ranks", __doc__)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="W", help="numbers of ranks")
    add("--repeats", type=int, default=9, metavar="N", help="samples of each implementation")
    add("--refuse-busy", action="store_true", help="exit if the machine is busy")
    add("--out", type=Path, metavar="FOLDER", help="folder for the results")
    options = parser.parse_args(arguments)
    environment = look_at_machine(options.refuse_busy)
    rows: dict[str, list[Row]] = {}
    for size in options.ranks:
        ranks = Ranks(size)
        try:
            found = ranks.run(measure, size, options.repeats)
        finally:
            ranks.close()
        for name, own in merged(found).items():
            rows.setdefault(name, []).extend(own)
            print(f"{name}, {size} ranks", *own, sep="\n")
    if options.out is not None:
        record = {"environment": environment, "base": asdict(BASE), **rows}
        write_record(options.out / "ranks.json", record)
        print(f"{options.out / 'ranks.json'} written")


if __name__ == "__main__":
    main()
