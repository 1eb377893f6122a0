"""Make the demo data: tables about invented museums, and one sentence for each in a house style.

The house style is that of a guidebook that gives orders: an opening that names the museum, a colon,
and commands separated by commas, with money in euros and no word of praise. Run from the repository
root::

    python benchmarks/make_demo_data.py softprompt_zoo/data/museums
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

SEED = 20240229
SIZES = {"train": 600, "validation": 60, "test": 60}
KEEP = 0.72  # probability that an optional attribute is kept
COMMANDS = ("entry", "closed", "highlight", "visitors", "stay")

Table = dict[str, str]


def _listed(text: str) -> list[str]:
    """Split a line at its commas."""
    return text.split(", ")


FIRST_WORDS = _listed(
    "Lantern, Copper, Heron, Juniper, Anchor, Marble, Willow, Falcon, Ember, Harbour, Silver,"
    " Orchard, Compass, Thistle, Raven, Velvet, Cobalt, Meadow, Beacon, Walnut, Saffron, Granite,"
    " Swallow, Hollow, Crescent, Larkspur, Mallow, Otter, Pilgrim, Quarry"
)
SECOND_WORDS = _listed(
    "Museum, Gallery, House, Collection, Rooms, Cabinet, Archive, Hall, Museum House, Depot,"
    " Vault, Pavilion, Loft, Annex, Arcade, Treasury, Salon, Workshop, Storehouse, Court, Museum"
    " Rooms, Wing, Repository, Stores"
)
CITIES = _listed(
    "Ghent, Porto, Turku, Lucca, Graz, Bilbao, Tartu, Leiden, Bergen, Krakow, Nantes, Trier,"
    " Sibiu, Split, Basel, Cork, Aarhus, Evora, Delft, Toledo, Verona, Brno, Uppsala, Maribor,"
    " Dundee, Lille, Kaunas, Bremen"
)
SUBJECTS = _listed(
    "clocks, ships, textiles, maps, toys, lighthouses, ceramics, printing, railways, glass, tea,"
    " photography, bells, radios, gardens, puppets, salt, bicycles, coins, whaling, shoes,"
    " violins, keys, bread"
)
BUILDINGS = _listed(
    "brewery, convent, railway station, customs house, flour mill, town hall, warehouse, fish"
    " market, chapel, gasworks, post office, barracks, rope factory, water tower, schoolhouse,"
    " tannery"
)
HIGHLIGHTS = _listed(
    "brass orrery, whale skeleton, paper theatre, tin robot, rose window, sleeping lion, giant"
    " loom, blue staircase, last steam tram, musical chair, glass harp, tattooed globe, silver"
    " herring, clockwork swan, burnt diary, folding boat, two-headed coin, painted ceiling"
)
DAYS = _listed("Monday, Tuesday, Wednesday, Thursday, Friday, Sunday")
VISITORS = _listed("children, grandparents, school groups, students, couples, dogs, cyclists, babies")
STAYS = ("half an hour", "one hour", "two hours", "a morning", "a whole day")
ENTRIES = ("free", *(f"{price} euros" for price in (3, 4, 5, 6, 7, 8, 9, 12, 14, 15)))


def make_table(name: str, rng: random.Random) -> Table:
    """Draw the attributes of one museum.

    Args:
        name: The museum's name.
        rng: The random generator.

    Returns:
        The attributes in a fixed order; all except name and city may be missing.
    """
    optional = {
        "subject": rng.choice(SUBJECTS),
        "founded": str(rng.randint(1790, 2019)),
        "building": rng.choice(BUILDINGS),
        "entry": rng.choice(ENTRIES),
        "closed": rng.choice(DAYS),
        "highlight": rng.choice(HIGHLIGHTS),
        "visitors": rng.choice(VISITORS),
        "stay": rng.choice(STAYS),
    }
    kept = {key for key in optional if rng.random() < KEEP}
    while sum(key in kept for key in COMMANDS) < 2:  # a sentence gives at least two commands
        kept.add(rng.choice(COMMANDS))
    table = {"name": name, "city": rng.choice(CITIES)}
    return table | {key: value for key, value in optional.items() if key in kept}


def describe(table: Table) -> str:
    """Describe what the museum is, using the attributes that are present.

    Args:
        table: The attributes.

    Returns:
        A phrase such as "a house of clocks in the old brewery since 1891".
    """
    words = f"a house of {table['subject']}" if "subject" in table else "a house of odd things"
    if "building" in table:
        words += f" in the old {table['building']}"
    if "founded" in table:
        words += f" since {table['founded']}"
    return words


OPENINGS: tuple[Callable[[Table], str], ...] = (
    lambda t: f"Off to {t['city']}, to {t['name']}, {describe(t)}",
    lambda t: f"Rain over {t['city']} means {t['name']}, {describe(t)}",
    lambda t: f"{t['name']}, {describe(t)}, waits in {t['city']}",
    lambda t: f"In {t['city']}, knock at {t['name']}, {describe(t)}",
    lambda t: f"{t['city']} keeps {t['name']}, {describe(t)}",
    lambda t: f"Nobody leaves {t['city']} without {t['name']}, {describe(t)}",
    lambda t: f"Ask in {t['city']} for {t['name']}, {describe(t)}",
    lambda t: f"First stop in {t['city']} is {t['name']}, {describe(t)}",
    lambda t: f"From the station in {t['city']}, walk to {t['name']}, {describe(t)}",
    lambda t: f"One more door in {t['city']} is {t['name']}, {describe(t)}",
)


def command(key: str, value: str) -> str:
    """Turn one attribute into a command.

    Args:
        key: The attribute, one of ``COMMANDS``.
        value: Its value.

    Returns:
        The command, without a capital letter or a period.
    """
    if key == "entry":
        return "pay nothing" if value == "free" else f"pay {value}"
    forms = {
        "closed": "never come on a {}",
        "highlight": "find the {}",
        "visitors": "bring {}",
        "stay": "stay {}",
    }
    return forms[key].format(value)


def make_sentence(table: Table, rng: random.Random) -> str:
    """Write the sentence for one museum.

    Args:
        table: The attributes.
        rng: The random generator, for the opening.

    Returns:
        One sentence that says everything in the table.
    """
    commands = [command(key, table[key]) for key in COMMANDS if key in table]
    return f"{rng.choice(OPENINGS)(table)}: {', '.join(commands[:-1])} and {commands[-1]}."


def make_rows() -> dict[str, list[dict[str, str]]]:
    """Make all rows.

    Returns:
        The rows of each file; no museum occurs twice.
    """
    rng = random.Random(SEED)
    names = [f"The {first} {second}" for first in FIRST_WORDS for second in SECOND_WORDS]
    rng.shuffle(names)
    rows: dict[str, list[dict[str, str]]] = {}
    for split, size in SIZES.items():
        rows[split] = []
        for _ in range(size):
            table = make_table(names.pop(), rng)
            text = " | ".join(f"{key} : {value}" for key, value in table.items())
            rows[split].append({"input": text, "target": make_sentence(table, rng)})
    return rows


def write_rows(folder: Path) -> None:
    """Write one JSONL file for each split.

    Args:
        folder: Where to write; created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in make_rows().items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, "utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make the demo data set about invented museums")
    parser.add_argument("folder", type=Path, help="where to write the three files")
    write_rows(parser.parse_args().folder)
