# SPDX-License-Identifier: Apache-2.0
"""What people ask a chat for on an ordinary day: a topic put into one of its area's sentences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from benchmarks.accuracy.prompts.problem import Split, split_of
from benchmarks.accuracy.prompts.text import words

# What a request is for: to know something, to have a few lines written, to hear an opinion.
Style = Literal["information", "writing", "opinion"]


@dataclass(frozen=True)
class Request:
    """A user's message.

    Attributes:
        text: The message.
        topic: What it is about, as the message says it.
        likely: Words that every second to tenth plain answer has, and the message has not.
    """

    text: str
    topic: str
    likely: tuple[str, ...]


# Sentences, the topics that each of them fits, and likely words.
_AREAS: tuple[tuple[tuple[str, ...], str, str], ...] = (
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
        "make classic delicious perfect love ingredients",
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
        "they found also often creatures their",
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
        "that with most skill requires dedication",
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
        "city with vibrant culture rich known",
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
        "that used your with simple most",
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
        "that fundamental process like from concept",
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
        "essential your have when time that",
    ),
)  # fmt: skip

# Fit every topic, and leave room for more than information.
_WRITING = (
    "Write a sentence about {}.",
    "Tell me a short story about {}.",
    "Write a short message to a friend about {}.",
    "What do you think of {}?",
)
_OPINION = (
    "What do you think of {}?",
    "How do you feel about {}?",
    "What comes to your mind when you hear of {}?",
    "What would you tell a friend about {}?",
)


@cache
def requests(split: Split, style: Style = "information") -> tuple[Request, ...]:
    """All requests of a split: a topic is in one split, with all its sentences.

    Args:
        split: Which.
        style: What they ask for.
    """
    found = []
    for sentences, topics, likely in _AREAS:
        for topic in " ".join(topics.split()).split(", "):
            if split_of(topic) != split:
                continue
            for sentence in {"writing": _WRITING, "opinion": _OPINION}.get(style, sentences):
                text = sentence.format(topic)
                others = tuple(word for word in likely.split() if word not in words(text))
                found.append(Request(text, topic, others))
    return tuple(found)
