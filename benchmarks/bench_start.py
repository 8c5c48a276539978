"""How long does `safe-sail --help` take?

The bar is half a second on a quiet machine. Two AMD EPYC cores shared with other work, Python 3.11, 2026-11-27, medians
of ten starts: 0.17 s of processor time, 0.27 s by the clock. A test holds what makes it so: it imports next to nothing.

Run: python -m benchmarks.bench_start
"""

import json
import resource
import statistics
import subprocess
import sys
import time

N = 10


def main() -> None:
    """Starts the command some times and prints one JSON line."""
    processor, wall = [], []
    for _ in range(N):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "scripts.main", "--help"], check=True, stdout=subprocess.DEVNULL)
        wall.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    line = {"n": N, "processor_s": statistics.median(processor), "wall_s": statistics.median(wall), "bar_s": 0.5}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
