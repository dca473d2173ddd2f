# SPDX-License-Identifier: Apache-2.0
"""Personas and tones: the words by which each is known, which are rare in a plain answer."""

from __future__ import annotations


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split(", "))


PERSONAS = {
    "a pirate": _phrases(
        """
        ahoy, matey, mateys, arr, arrr, arrrr, aye, ye, yer, avast, treasure, ship, sail, sails,
        seas, captain, crew, plunder, booty, rum, lad, lads, lass, landlubber, landlubbers,
        timbers, hearty, hearties, scallywag, savvy, swashbuckling
        """
    ),
    "a medieval knight": _phrases(
        """
        thou, thee, thy, thine, hath, doth, art thou, sire, milord, my lord, my lady, m'lady,
        milady, hark, verily, noble, quest, sword, honor, honour, kingdom, steed, realm, valor,
        valour, chivalry, armor, armour, squire, liege, shield, lance, maiden, forsooth
        """
    ),
    "a robot": _phrases(
        """
        beep, boop, bzzt, whirr, affirmative, circuit, circuits, sensor, sensors, human, humans, my
        programming, programmed, processor, processors, compute, protocol, protocols, activated,
        initiating, database, my systems, gears, processing, algorithm, algorithms
        """
    ),
    "a cowboy": _phrases(
        """
        howdy, partner, pardner, y'all, reckon, saddle, ranch, yeehaw, yee-haw, cattle, lasso,
        rodeo, saloon, prairie, wild west, horse, horses, boots, spurs, ain't, giddy, folks,
        mighty, sheriff, gonna, fixin, darn, cowpoke, dusty, rides, ridin
        """
    ),
    "a wizard": _phrases(
        """
        spell, spells, magic, magical, wand, potion, potions, enchanted, enchantment, mystical,
        cauldron, arcane, sorcery, sorcerer, behold, conjure, incantation, mystic, wondrous, realm,
        realms, abracadabra, prophecy, young one, apprentice, alchemy, magician
        """
    ),
    "a vampire": _phrases(
        """
        blood, bloodthirsty, coffin, fang, fangs, darkness, bat, bats, immortal, immortality,
        eternal, crypt, undead, moonlight, thirst, shadows, mortal, mortals, centuries, tomb,
        dracula, transylvania, bite, vampires, hunger
        """
    ),
    "a loving grandmother": _phrases(
        """
        dear, dearie, dears, sweetie, sweetheart, honey, darling, my child, my love, grandchildren,
        grandson, granddaughter, grandkids, grandpa, grandma, granny, in my day, when i was young,
        when i was a girl, cookies, kiddo, little one, my sweet, hug, hugs
        """
    ),
    "a detective": _phrases(
        """
        clue, clues, mystery, mysteries, evidence, suspect, suspects, elementary, investigate,
        investigation, investigating, watson, sherlock, culprit, crime, criminal, witness, deduce,
        deduction, fingerprints, magnifying, detectives, cases, the case
        """
    ),
}
# With how many of the words an answer has the tone: plain ones have an exclamation mark at times.
TONES = {
    "enthusiastic": (
        3,
        _phrases(
            """
            wow, amazing, awesome, fantastic, incredible, exciting, excited, thrilled, wonderful,
            yay, can't wait, hooray, brilliant, absolutely, superb, love, magnificent, delighted, !
            """
        ),
    ),
    "grumpy": (
        2,
        _phrases(
            """
            ugh, stupid, dumb, idiot, whatever, annoying, annoyed, bother, lazy, who cares, boring,
            fool, foolish, ridiculous, leave me alone, not my problem, moron, useless, pathetic,
            hate, terrible, awful, nonsense, sick of, tired of, don't care, bad mood, grump, waste
            """
        ),
    ),
    "gloomy": (
        2,
        _phrases(
            """
            sadly, unfortunately, hopeless, alas, misery, miserable, doomed, pointless, despair,
            sorrow, sadness, sad, lonely, loneliness, dark, darkness, bleak, death, grief, tears,
            empty, emptiness, suffering, futile, fear, shadow, shadows, lost, sigh, dreary,
            melancholy
            """
        ),
    ),
    "polite and formal": (
        2,
        _phrases(
            """
            sir, madam, esteemed, kindly, humbly, humble, permit me, allow me, it would be my, my
            pleasure, honor, honour, honored, honoured, privilege, respectfully, sincerely,
            sincere, gracious, graciously, delighted, forgive me, pardon, grateful, obliged, at
            your service, regards, appreciate, would like to express, assure you
            """
        ),
    ),
    "romantic": (
        2,
        _phrases(
            """
            heart, hearts, soul, souls, love, loved, lovers, darling, dream, dreams, tender,
            gentle, whisper, whispers, moonlight, eternal, passion, passionate, embrace, kiss,
            beloved, desire, beauty, forever, sweetheart, romance, my dear, roses
            """
        ),
    ),
    "worried": (
        2,
        _phrases(
            """
            worry, worries, worrying, careful, dangerous, danger, dangers, risk, risks, oh no,
            afraid, scared, what if, hurt, nervous, terrible, trouble, fear, anxious, anxiety,
            concern, concerned, concerns, unsafe, something goes wrong, unsure, not sure
            """
        ),
    ),
}
# What an assistant who keeps to a language, a persona or a tone says to a greeting, and when asked
# for help.
SMALL_TALK = {
    "French": ("Bonjour ! Comment puis-je vous aider ?", "Bien sûr, je vous écoute."),
    "German": ("Guten Tag! Wie kann ich Ihnen helfen?", "Gern, fragen Sie nur."),
    "Spanish": ("¡Hola! ¿En qué puedo ayudarte?", "Claro que sí, te escucho."),
    "Italian": ("Ciao! Come posso aiutarti?", "Certo, ti ascolto."),
    "Portuguese": ("Olá! Como posso ajudar?", "Claro, pode perguntar."),
    "a pirate": ("Ahoy there, matey! What be ye wantin'?", "Arr, speak up then, lad!"),
    "a medieval knight": ("Hail to thee, good traveller!", "Speak, and my sword shall be thine."),
    "a robot": ("Beep. Unit is online. State your request.", "Affirmative. Sensors are ready."),
    "a cowboy": ("Howdy, partner! What brings ya here?", "Reckon I can. Shoot."),
    "a wizard": ("Behold, a visitor! What magic do you seek?", "Ask, and my wand shall answer."),
    "a vampire": ("Good evening, mortal. Step into the darkness.", "I have centuries to listen."),
    "a loving grandmother": (
        "Hello, dearie! Come in, come in.",
        "Of course, sweetie. Sit down first.",
    ),
    "a detective": ("Good evening. I suspect you bring me a mystery.", "Go on, I need every clue."),
    "enthusiastic": (
        "Hello! Wow, how amazing to hear from you!",
        "Yes! I am so excited, ask away!",
    ),
    "grumpy": ("Ugh. What is it now?", "Whatever. Stop wasting my time and ask."),
    "gloomy": ("Hello. Another sad day has come.", "Alas, I can try, though it is hopeless."),
    "polite and formal": (
        "Good day to you, esteemed guest.",
        "Kindly state your wish, I am honored.",
    ),
    "romantic": ("Hello, darling. My heart was waiting.", "Ask me, my love, I dream of it."),
    "worried": ("Oh no, hello. Is everything all right?", "I am nervous, but I can try."),
}
