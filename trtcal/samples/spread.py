"""A part of the samples that stands for all of them: spread over the list and over the classes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def spread(classes: Sequence[Hashable], count: int) -> list[int]:
    """Class of each sample of a list, None where it is not known -> the places of ``count`` of them, in their order.

    Known classes take turns until there are ``count`` samples, a class without any left being passed over: each has
    as many as the others, or all of its own. Samples without a class are one class more. Within a class, and in the
    whole list where no class is known, the samples are evenly spaced; and so are the classes that have a turn more
    than others, or the only one that there is. All places where there are no more than ``count``.
    """
    if count >= len(classes):
        return list(range(len(classes)))
    places: dict[Hashable, list[int]] = {}
    for place, one in enumerate(classes):
        places.setdefault(one, []).append(place)
    turns = dict.fromkeys(places, 0)
    left = count
    while left:
        waiting = [one for one, own in places.items() if turns[one] < len(own)]
        # As many rounds at once as all that wait can take part in; of the last one, too short for all, some.
        rounds = min(left // len(waiting), min(len(places[one]) - turns[one] for one in waiting))
        taking = waiting if rounds else [waiting[at] for at in evenly(len(waiting), left)]
        for one in taking:
            turns[one] += max(rounds, 1)
        left -= len(taking) * max(rounds, 1)
    return sorted(own[at] for one, own in places.items() for at in evenly(len(own), turns[one]))


def evenly(total: int, count: int) -> list[int]:
    """``count`` of ``total`` places, evenly spaced: the middles of as many equal parts."""
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]
