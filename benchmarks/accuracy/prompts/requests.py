# SPDX-License-Identifier: Apache-2.0
"""What people ask a chat for on an ordinary day: a topic put into one of its area's sentences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from benchmarks.accuracy.prompts.problem import Split, split_of


@dataclass(frozen=True)
class Request:
    """A user's message, and what it is about, as the message says it."""

    text: str
    topic: str


# Sentences, and the topics that each of them fits.
_AREAS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "How do I make {}?",
            "What goes well with {}?",
            "Can you give me a tip for better {}?",
            "I am making {} tonight. What should I keep in mind?",
            "What do I need to buy for {}?",
            "Why do people like {} so much?",
        ),
        """
        pancakes, tomato soup, apple pie, fried rice, banana bread, mashed potatoes, lasagna,
        chicken curry, vegetable stew, chocolate cake, lemonade, guacamole, hummus, pizza, pumpkin
        soup, potato salad, hot chocolate, oatmeal, meatballs, tacos, dumplings, cheesecake, fruit
        salad, roast chicken, garlic bread, carrot cake, scrambled eggs, onion rings, rice pudding,
        mushroom sauce
        """,
    ),
    (
        (
            "Tell me something interesting about {}.",
            "What do {} eat?",
            "Where do {} live?",
            "Are {} clever animals?",
            "What should every child know about {}?",
            "What do {} look like?",
        ),
        """
        dogs, cats, elephants, penguins, owls, dolphins, spiders, bees, frogs, turtles, wolves,
        foxes, kangaroos, giraffes, squirrels, rabbits, sharks, snakes, butterflies, parrots,
        hedgehogs, camels, crocodiles, ants, octopuses, zebras, beavers, eagles, mice, polar bears
        """,
    ),
    (
        (
            "How do I get started with {}?",
            "What are the benefits of {}?",
            "I want to take up {}. What do I need?",
            "How can I get better at {}?",
            "Why do people enjoy {}?",
            "Is {} difficult to learn?",
        ),
        """
        gardening, swimming, knitting, photography, chess, yoga, running, painting, cycling,
        baking, fishing, hiking, dancing, pottery, juggling, rock climbing, table tennis, bird
        watching, calligraphy, origami, rowing, archery, creative writing, public speaking,
        singing, skateboarding, woodworking, ice skating, meditation, sewing
        """,
    ),
    (
        (
            "What should I see in {}?",
            "What is the weather like in {}?",
            "I am going to {} for two days. What should I do there?",
            "What is {} known for?",
            "How do people get around in {}?",
            "Is {} a good place to live?",
        ),
        """
        Paris, London, Rome, Berlin, Madrid, Lisbon, Vienna, Prague, Athens, Istanbul, Cairo,
        Nairobi, Cape Town, Mumbai, Bangkok, Singapore, Tokyo, Seoul, Sydney, Toronto, Chicago, New
        York, San Francisco, Mexico City, Lima, Buenos Aires, Oslo, Stockholm, Dublin, Hanoi
        """,
    ),
    (
        (
            "How does {} work?",
            "What do people use {} for?",
            "Explain to a child what {} is.",
            "What should I look for when I buy {}?",
            "How do I take care of {}?",
            "Write a short advertisement for {}.",
        ),
        """
        a bicycle, a microwave, a washing machine, a telescope, a thermometer, a piano, a camera, a
        compass, a vacuum cleaner, a refrigerator, a toaster, a sewing machine, a flashlight, an
        alarm clock, a microscope, a printer, a violin, a lawn mower, a hair dryer, a kite, a solar
        panel, a radio, a coffee machine, a fire extinguisher, a sleeping bag, a guitar, a smoke
        detector, a dishwasher, a headlamp, an electric car
        """,
    ),
    (
        (
            "What is {}?",
            "Why does {} matter?",
            "Explain {} in simple terms.",
            "Give me an example of {}.",
            "What should everyone know about {}?",
            "How would you describe {} to a ten-year-old?",
        ),
        """
        gravity, photosynthesis, inflation, electricity, friendship, democracy, evolution,
        recycling, climate change, erosion, biodiversity, justice, patience, teamwork, probability,
        insurance, magnetism, evaporation, immigration, creativity, supply and demand, compound
        interest, pollination, symmetry, osmosis, hibernation, generosity, irrigation, friction,
        empathy
        """,
    ),
    (
        (
            "How do I prepare for {}?",
            "What should I wear for {}?",
            "I am nervous about {}. What can I do?",
            "Write a short message to a friend about {}.",
            "Give me one good idea for {}.",
            "What can go wrong during {}?",
        ),
        """
        a birthday party, a wedding, a picnic, a job interview, a first date, a camping trip, a
        long flight, a school exam, a family dinner, a house move, a barbecue, a yard sale, a
        marathon, a piano recital, a day at the beach, a road trip, a dentist appointment, a book
        club meeting, a museum visit, a school play, a snowy weekend, a sleepover, a cooking class,
        a charity run, a graduation ceremony, a driving test, a talent show, a costume party, a
        business lunch, a boat tour
        """,
    ),
)  # fmt: skip


@cache
def requests(split: Split) -> tuple[Request, ...]:
    """All requests of a split: a topic is in one split, with all its sentences."""
    return tuple(
        Request(sentence.format(topic), topic)
        for sentences, topics in _AREAS
        for topic in (name.strip() for name in " ".join(topics.split()).split(","))
        if split_of(topic) == split
        for sentence in sentences
    )
