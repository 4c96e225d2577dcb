#!/usr/bin/env bash
# A SIGTERM for a forked child reaches the parent's event loop too (Python 3.11, asyncio and uvloop).
# loop.add_signal_handler() has the kernel's signal written to a socket (signal.set_wakeup_fd); a fork inherits both, so
# multiprocessing.Process.terminate() of a child, which does not even end, calls the parent's handler.
# mesh/forks.py takes both back in a child.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import asyncio, multiprocessing, signal, sys, time
import uvloop

def work(begun):
    begun.set()
    time.sleep(30)

async def main():
    told = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.append, "SIGTERM")
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    child = fork.Process(target=work, args=(begun,))
    child.start()
    await asyncio.to_thread(begun.wait)
    child.terminate()  # for the child, and for nobody else
    await asyncio.sleep(1)
    alive = child.is_alive()
    child.kill()
    child.join()
    return told, alive

print("Python", sys.version.split()[0], "uvloop", uvloop.__version__)
seen = []
for name, factory in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
    with asyncio.Runner(loop_factory=factory) as runner:
        told, alive = runner.run(main())
    print(f"{name}: the parent's handler was called for {told}; the child lives: {alive}")
    seen.append((told, alive))
sys.exit(0 if seen == [(["SIGTERM"], True)] * 2 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
echo "The parent's signal handler ran for the signal that terminate() sent to its child, and the child ignored it."
