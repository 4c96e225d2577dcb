"""Breaking changes of events and triggers: subscriptions, schedules and keys. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.contract.breaks.break_rules import Break
from mesh.contract.breaks.compared_contracts import ComparedContracts
from mesh.contract.model import ChangeTrigger, EventTrigger, EventType, Method, ScheduleTrigger

__all__ = ["event_breaks", "trigger_breaks"]


def event_breaks(both: ComparedContracts) -> Iterator[Break]:
    """Yield the breaking changes of the events themselves."""
    for name, old in both.old.events.items():
        new = both.new.events.get(name)
        if new is None:
            is_there = name in both.new_elements.messages
            yield Break(
                both.new_elements.place(name, file=both.old_elements.file_of(name)), "EVENT_REMOVED", name,
                "the message is no longer an event" if is_there else "the event is gone",
                "its subscribers get none, and those that wait to be delivered or are dead letters cannot be",
                "keep it until all its events have been delivered and expired",
            )  # fmt: skip
        elif old.key and _key(old) != _key(new):
            yield Break(
                new.place, "EVENT_KEY_CHANGED", name, f"the key was {old.key} and is {new.key or 'none'} now",
                f"events of one {old.key} are no longer delivered in order, those under way included",
                "keep the key; publish a new event with the other key beside it",
            )  # fmt: skip


def _key(event: EventType) -> int:
    """Return the number of the key's field, which a rename leaves alone; 0: no key."""
    field = event.message.DESCRIPTOR.fields_by_name.get(event.key)
    return 0 if field is None else int(field.number)


def trigger_breaks(both: ComparedContracts, old: Method, new: Method) -> Iterator[Break]:
    """Yield the breaking changes of the triggers of one method."""
    name = old.path[1:]
    for trigger in old.triggers:
        if isinstance(trigger, EventTrigger | ChangeTrigger) and trigger not in new.triggers:
            others = [
                method.path[1:] for method in both.new.methods.values()
                if trigger in method.triggers and trigger not in _triggers(both, method)
            ]  # fmt: skip
            moved = f" ({others[0]} has it now, and gets the retained ones too)" if others else ""
            yield Break(
                new.place, "SUBSCRIPTION_REMOVED", name, f"{trigger} no longer calls it{moved}",
                "those that wait to be delivered, and new ones, have no effect here",
                "keep the trigger, with a function that does nothing, until none waits",
            )  # fmt: skip
    before, after = _schedules(old), _schedules(new)
    if len(after) < len(before):
        gone = ", ".join(one.schedule for one in before if one not in after) or before[-1].schedule
        yield Break(
            new.place, "SCHEDULE_REMOVED", name, f"the schedule {gone} no longer calls it",
            "the work that it does at these times is not done", "keep the schedule, or do the work elsewhere first",
        )  # fmt: skip
    skipped = {one.schedule for one in before if not one.skip_missed}
    for one in after:
        if one.skip_missed and (one.schedule in skipped or (len(before) == len(after) == 1 and skipped)):
            yield Break(
                new.place, "TICKS_SKIPPED", name, f"skip_missed is new for the schedule {one.schedule}",
                "ticks while no replica ran are not made up for", "leave skip_missed out",
            )  # fmt: skip


def _triggers(both: ComparedContracts, method: Method) -> tuple[object, ...]:
    old = both.old.method(method.path)
    return () if old is None else old.triggers


def _schedules(method: Method) -> list[ScheduleTrigger]:
    return [one for one in method.triggers if isinstance(one, ScheduleTrigger)]
