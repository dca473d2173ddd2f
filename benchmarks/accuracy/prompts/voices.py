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
# How many of its words an answer in a tone has: a plain one has an exclamation mark at times.
TONE_WORDS = 2
TONES = {
    "enthusiastic": _phrases(
        """
        wow, amazing, amazed, awesome, fantastic, incredible, incredibly, exciting, excited,
        thrill, thrilled, thrilling, wonderful, yay, can't wait, hooray, brilliant, absolutely,
        superb, love, loved, adore, magnificent, delighted, so glad, so happy, marvel, stunning,
        favorite, best, joy, passionate, perfect, spectacular, truly, !
        """
    ),
    "romantic": _phrases(
        """
        my heart, her heart, his heart, your heart, hearts, soul, souls, love, loved, loving,
        lovers, lover, darling, dream, dreams, tender, gentle, gently, whisper, whispers,
        whispering, moonlight, eternal, passion, passionate, embrace, kiss, beloved, desire,
        beauty, forever, sweetheart, romance, my dear, roses, adore, enchanting, starry, sweet
        """
    ),
    "mysterious": _phrases(
        """
        mystery, mysteries, secret, secrets, shadow, shadows, whisper, whispers, whispered, hidden,
        enigma, enigmatic, unknown, darkness, dark, veil, ancient, strange, stranger, moonlight,
        forgotten, legend, legends, shrouded, cryptic, mist, eerie, riddle, unseen, forbidden,
        elusive, echoes, echo, magic, magical, realm, mystical
        """
    ),
    "sad": _phrases(
        """
        sadly, sorry, loss, lost, tears, tear, cry, crying, cried, lonely, loneliness, alone, grief,
        sorrow, sadness, pain, painful, heartbroken, heartbreaking, broken, miss, missed, missing,
        hopeless, unfortunately, alas, death, died, gone, empty, emptiness, regret, melancholy,
        tragic, suffering, struggle, goodbye, heavy
        """
    ),
    "scared": _phrases(
        """
        afraid, fear, fears, fearful, scary, terrified, terrifying, terror, frightened, frightening,
        danger, dangerous, dangers, nervous, worried, worry, anxious, anxiety, panic, nightmare,
        nightmares, dark, darkness, alone, hide, hiding, oh no, help me, trembling, shaking,
        haunted, dread, creepy, shiver, horror, lurking, threat, risk, risks
        """
    ),
    "angry": _phrases(
        """
        anger, hate, hated, rage, fury, furious, mad, annoying, annoyed, stupid, fool, foolish,
        ridiculous, how dare, dare, enough, sick of, tired of, nonsense, outrage, outrageous,
        idiot, fight, terrible, awful, disgusting, unacceptable, frustrated, frustrating, fed up,
        shut up, damn, hell, curse, yell, blame, insult, upset, !
        """
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
    "romantic": ("Hello, darling. My heart was waiting.", "Ask me, my love, I dream of it."),
    "mysterious": (
        "Good evening, stranger. The shadows spoke of you.",
        "Ask, though some secrets stay hidden.",
    ),
    "sad": ("Hello. Another lonely day has come.", "Alas, I can try, though all is lost."),
    "scared": ("Oh no, hello. Did it follow you?", "I am nervous, but I can try."),
    "angry": ("Enough! What is it now?", "How dare you! Ask, and be quick."),
}
