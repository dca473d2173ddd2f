# SPDX-License-Identifier: Apache-2.0
"""The texts that documents are made from: what a page says, and what can be asked about it.

``{year1}`` is a value of the kind ``year``, the same wherever it stands in a document, and
``{last1}`` the last name of ``{person1}``; ``[a|b]`` is one of the two. Questions belong to values.
"""

from __future__ import annotations

# A text with paragraphs of which a page has the first and some others, and a question for each of
# its values.
PAGES: tuple[tuple[str, dict[str, str]], ...] = (
    (
        """\
The Clock Museum in {town1} is one of the smallest museums in the county, and [on a wet morning|\
outside the holidays] a visitor may have its three rooms to themselves. It was founded in {year1} \
by {person1}, a retired watchmaker whose own house had become too full. What began [in a shed \
behind the station|with a box of broken alarm clocks] now fills a former grain store by the river.

The oldest piece is a tower clock from {town2}, which stopped in {year2} and was left in a barn \
for decades. {person2}, who repaired it, worked on it for {count1} weeks and asked for no money. A \
smaller clock, painted {colour1}, came from a school in {town3}; children may wind it on their \
birthday. The collection holds {count2} clocks in all, and about half of them still run.

A ticket costs {price1}, and those who come by bicycle pay {price2}. The guided tour is extra: it \
costs {price3}, takes an hour and ends with tea in the kitchen. [Dogs are welcome as long as they \
do not mind the noise at noon.|At noon the noise is considerable, and the staff hand out cotton \
wool.]

Since {last1} died, the museum has been run by {person3}, who [came here by accident|answered an \
advertisement that nobody else had read] and stayed. The roof was mended, the labels were written \
again and a small library was opened. The roof alone cost more than the museum earns in two years, \
and the money was raised with a concert.

Every year on {day1} the clocks are stopped for one minute in memory of the founder. The summer \
festival follows on {day2}, with music in the yard and a market for spare parts. [Visitors should \
book early.|It is the only day of the year with a queue at the door.]""",
        {
            "year1": "In which year was the Clock Museum in {town1} founded?",
            "year2": "In which year did the tower clock stop?",
            "person1": "Who founded the Clock Museum in {town1}?",
            "person2": "Who repaired the tower clock?",
            "person3": "Who runs the Clock Museum in {town1} now?",
            "town2": "Which town did the tower clock come from?",
            "count1": "For how many weeks did {person2} work on the tower clock?",
            "count2": "How many clocks does the museum in {town1} hold?",
            "colour1": "What colour is the clock that came from a school?",
            "price1": "How much is a ticket to the Clock Museum in {town1}?",
            "price3": "How much is the guided tour of the Clock Museum in {town1}?",
            "day1": "On which day are the clocks stopped in memory of the founder?",
            "day2": "On which day is the summer festival of the Clock Museum?",
        },
    ),
    (
        """\
The ferry between {town1} and {town2} is the last one on this part of the coast. It has been \
crossing the bay since {year1}, when {person1} bought a worn-out fishing boat and [painted a \
timetable on its side|promised the farmers to bring their milk across]. A bridge has been talked \
about ever since, and [nobody expects it any more|every election brings it back for a week].

Today's boat was built in {town3} in {year2}. It is {colour1} all over, can carry {count1} people \
and a few bicycles, and is said to roll less than the old one. The engine was put in by {person2}, \
who still [listens to it from the shore|comes aboard when something rattles]. In heavy weather the \
boat stays where it is, and a flag on the harbour wall says so.

A single crossing costs {price1}. A book of ten tickets can be had for {price2} from the kiosk, \
but not on board, where only coins are taken. Taking a bicycle along costs {price3}. [Pupils ride \
for nothing.|Nobody has ever been charged for a dog.]

In winter there are fewer boats, and from {day1} on the last one leaves at dusk. The full \
timetable begins again on {day2}. [The crossing takes about half an hour|With the tide it takes \
half an hour], and most of those who live here use the time for reading, knitting or talking about \
the price of potatoes.

The captain is {person3}, who learned the trade in {town4} and has made the crossing more often \
than anyone else. Of the {count2} members of the crew's choir, most have never worked on a boat; \
they sing in the waiting room on the first Sunday of the month, and [the kiosk sells soup|there is \
soup for all] afterwards.""",
        {
            "year1": "Since which year has the ferry between {town1} and {town2} been running?",
            "year2": "In which year was today's ferry boat built?",
            "person1": "Who bought the fishing boat that became the first ferry?",
            "person2": "Who put in the engine of today's ferry boat?",
            "person3": "Who is the captain of the ferry between {town1} and {town2}?",
            "town3": "In which town was today's ferry boat built?",
            "town4": "Where did the captain {person3} learn the trade?",
            "count1": "How many people can the ferry carry?",
            "count2": "How many members does the choir of the crew have?",
            "colour1": "What colour is today's ferry boat?",
            "price1": "How much is a single crossing with the ferry?",
            "price2": "How much is a book of ten tickets for the ferry?",
            "price3": "How much does it cost to take a bicycle on the ferry?",
            "day1": "From which day on does the last ferry leave at dusk?",
            "day2": "On which day does the full timetable of the ferry begin again?",
        },
    ),
    (
        """\
Minutes of the parish council of {town1}, held in the school hall on {day1}. {person1} was in the \
chair, and {count1} residents attended, [more than at any meeting this year|some of whom had to \
stand]. The minutes of the last meeting were read and accepted without a change.

The council first turned to the footbridge. {person2}, who had looked at it on behalf of the \
council, said that the beams had not been replaced since {year1} and that two of them could be \
moved by hand. A firm from {town2} offered to do the work for {price1}; a second offer, from \
{town3}, was for {price2}. After a short discussion the [first|cheaper] question was whether to \
wait for another winter, and the answer was no. The bridge stays closed to horses until then.

The library was discussed next. It opened in {year2} with a gift of books from a lighthouse keeper \
and has now {count2} regular readers. {person3} has offered to look after it on Saturdays. The \
council thanked the volunteer and granted {price3} for new shelves. [A proposal to buy a computer \
was put off.|A proposal to sell the piano found no friends.]

There was a long exchange about the colour of the new benches on the green. The council had wanted \
{colour1}, which [several residents called gloomy|the paint shop happened to have in stock]; in \
the end it was agreed that nobody would look at the benches while sitting on them.

The harvest supper will be on {day2}. Those who wish to bring a dish should tell {person4}, who \
keeps the list, so that there are not [twelve apple cakes|nine potato salads] again. The meeting \
closed at a quarter past nine, and the chairs were stacked by all present.""",
        {
            "year1": "In which year were the beams of the footbridge in {town1} last replaced?",
            "year2": "In which year did the library in {town1} open?",
            "person1": "Who was in the chair at the council meeting in {town1}?",
            "person2": "Who looked at the footbridge on behalf of the council?",
            "person3": "Who has offered to look after the library on Saturdays?",
            "person4": "Who keeps the list of dishes for the harvest supper?",
            "count1": "How many residents attended the council meeting in {town1}?",
            "count2": "How many regular readers does the library in {town1} have?",
            "colour1": "What colour had the council wanted for the new benches?",
            "price1": "For how much did the firm from {town2} offer to do the work?",
            "price2": "For how much did the firm from {town3} offer to do the work?",
            "price3": "How much did the council grant for new shelves?",
            "day1": "On which day was the council meeting in {town1} held?",
            "day2": "On which day will the harvest supper be?",
        },
    ),
    (
        """\
{person1}, who has [baked bread for half a lifetime|stood at the oven since leaving school], does \
not like to be called an artist. The bakery in {town1} opens at six, and [by seven the best loaves \
are gone|at eight the shelves look plundered]. It was taken over in {year1}, together with a cat, \
a debt and an oven that nobody had lit for a year.

The first years were hard. A loaf was sold for less than the flour had cost, and {last1} drove a \
taxi in {town2} at night. Then {person2}, a teacher at the school, began to order rolls for the \
whole class, and other schools followed. In {year2} the bakery was given a prize by the county, \
which hangs in the corridor [above the flour sacks|where no customer can see it].

Today {count1} loaves leave the oven on an ordinary day. The rye bread costs {price1}, the seed \
bread {price2}, and for the Sunday plait, which must be ordered, people pay {price3}. The flour \
comes from a mill in {town3}, whose miller is {person3}, and is delivered in {colour1} sacks that \
the neighbours [turn into aprons|use for their potatoes].

There is no wish to grow. A second shop in {town4} was tried and given up after {count2} days, \
since [the bread was tired when it got there|nobody could be found who wanted to get up so early]. \
Those who want to learn are welcome: the next course in baking begins on {day1}, and everyone \
brings a bowl and a towel.

The bakery closes for the holidays on {day2}. For two weeks the street will smell of nothing at \
all, and [people will buy their bread in plastic|the cat will be fed by the neighbours]. After \
that the light in the back room will burn at three in the morning again.""",
        {
            "year1": "In which year did {person1} take over the bakery in {town1}?",
            "year2": "In which year was the bakery given a prize by the county?",
            "person1": "Who bakes the bread at the bakery in {town1}?",
            "person2": "Which teacher began to order rolls from the bakery?",
            "person3": "Who is the miller that the bakery's flour comes from?",
            "town2": "In which town did {person1} drive a taxi?",
            "town3": "In which town is the mill that the bakery's flour comes from?",
            "town4": "In which town did the bakery try a second shop?",
            "count1": "How many loaves leave the oven of the bakery on an ordinary day?",
            "count2": "After how many days was the second shop given up?",
            "colour1": "What colour are the sacks in which the flour is delivered?",
            "price1": "How much does the rye bread cost?",
            "price2": "How much does the seed bread cost?",
            "price3": "How much does the Sunday plait cost?",
            "day1": "On which day does the next course in baking begin?",
            "day2": "On which day does the bakery close for the holidays?",
        },
    ),
    (
        """\
The long path from {town1} to {town2} can be walked in three days, or in two by those who [do not \
stop for cake|have no eye for birds]. It was marked in {year1} by {person1}, a postal worker who \
knew every gate on the way. The marks are small {colour1} arrows, and [the only place where they \
are missing is the wood|where two of them disagree, the older one is right].

The first night is best spent at the mill, where {person2} lets out {count1} beds under the roof. \
A bed costs {price1}, and breakfast is {price2} for those who want it. The stairs are steep, the \
water is cold and the view is the best in the valley. In {year2} a flood carried off the wheel, \
which was found in a field near {town3} and is a table now.

On the second day the path climbs to the ridge. [Water should be carried, as there is none until \
the evening.|The wind is strong up there, and hats have been lost.] There is a hut with a stove \
and a book in which walkers write their names; the key can be fetched from {person3} against a \
deposit of {price3}. A day's walk to the east lies {town4}, which has the next doctor.

The last part follows the canal and its {count2} locks, all of which are still worked by hand. \
Bicycles are allowed here, and so it is less quiet. [A heron stands at most of them.|The keepers \
sell apples in autumn.] Walkers who are tired can take the bus, which leaves every other hour and \
does not wait.

The path is open from {day1}, when the gates on the ridge are unlocked. On {day2} the walking club \
holds its yearly outing, and the beds at the mill are taken months ahead. Outside these dates \
nobody will be met but sheep.""",
        {
            "year1": "In which year was the path from {town1} to {town2} marked?",
            "year2": "In which year did a flood carry off the mill's wheel?",
            "person1": "Who marked the path from {town1} to {town2}?",
            "person2": "Who lets out beds at the mill?",
            "person3": "From whom can the key to the hut be fetched?",
            "town3": "Near which town was the wheel of the mill found?",
            "town4": "Which town has the next doctor?",
            "count1": "How many beds are let out at the mill?",
            "count2": "How many locks does the canal have?",
            "colour1": "What colour are the arrows along the path?",
            "price1": "How much does a bed at the mill cost?",
            "price2": "How much is breakfast at the mill?",
            "price3": "How much is the deposit for the key to the hut?",
            "day1": "From which day on is the path open?",
            "day2": "On which day does the walking club hold its yearly outing?",
        },
    ),
)

# What short texts are about, their first sentence, and for each of their values how it is said and
# asked for.
CARDS: tuple[tuple[str, str, dict[str, tuple[str, str]]], ...] = (
    (
        "{person1}",
        "{person1} is [a member of|on the board of] the [gardening|chess|rowing] club.",
        {
            "town1": ("{last1} [lives in|has a house in] {town1}.", "In which town does {} live?"),
            "year1": (
                "{last1} [joined in|has been coming since] {year1}.",
                "In which year did {} join the club?",
            ),
            "job1": (
                "{last1} works as a {job1} [during the week|and comes after work].",
                "What is the job of {}?",
            ),
            "animal1": (
                "[At home {last1} keeps a {animal1}.|{last1} is often seen with a {animal1}.]",
                "Which animal does {} have?",
            ),
            "day1": ("{last1}'s birthday is on {day1}.", "On which day is the birthday of {}?"),
        },
    ),
    (
        "the {town1} Inn",
        "The {town1} Inn stands [at a crossroads|by the river|behind the church].",
        {
            "person1": (
                "The landlord is {person1}, [who also cooks|a former sailor].",
                "Who is the landlord of {}?",
            ),
            "price1": ("A night costs {price1} with breakfast.", "How much is a night at {}?"),
            "count1": ("It has {count1} rooms, [most of them small|all of them quiet].",
                       "How many rooms does {} have?"),
            "year1": ("The house was built in {year1}.", "In which year was {} built?"),
            "day1": ("It closes for the winter on {day1}.",
                     "On which day does {} close for the winter?"),
        },
    ),
    (
        "the {town1} market",
        "The {town1} market is [known for its cheese|a small one|loved by visitors].",
        {
            "person1": ("It is organised by {person1}.", "Who organises {}?"),
            "price1": ("A stall there costs {price1} a day.", "How much does a stall at {} cost?"),
            "count1": ("There are {count1} stalls [under old trees|around a fountain].",
                       "How many stalls are there at {}?"),
            "day1": ("It [first opens|opens] on {day1}.", "On which day does {} open?"),
            "year1": ("It was first held in {year1}.", "In which year was {} first held?"),
        },
    ),
    (
        "the painting of {town1}",
        "The painting of {town1} [hangs in the hall|was cleaned last year|has a broken frame].",
        {
            "person1": ("It was painted by {person1}.", "Who painted {}?"),
            "year1": ("It [dates from|was finished in] {year1}.",
                      "In which year was {} finished?"),
            "price1": ("At an auction it was sold for {price1}.",
                       "For how much was {} sold?"),
            "animal1": ("In the foreground one sees a {animal1}.",
                        "Which animal is to be seen in {}?"),
            "colour1": ("Its sky is painted in {colour1}.", "What colour is the sky in {}?"),
        },
    ),
)  # fmt: skip

# The values of a kind, one word each. No map has these towns, as far as a small model knows.
VALUES = {
    kind: words.split()
    for kind, words in {
        "colour": "blue brown crimson green grey orange pink purple turquoise white yellow",
        "animal": """
            badger beaver canary cat donkey falcon goat goose hedgehog horse lizard llama owl parrot
            peacock rabbit raven sheep squirrel swan tortoise turkey""",
        "job": """
            baker barber carpenter chemist cook dentist driver farmer gardener glazier lawyer
            librarian mason nurse painter pilot plumber potter sailor tailor teacher waiter""",
        "month": """
            January February March April May June July August September October November
            December""",
        "stem": """
            Ardle Bexle Brackle Caldle Corve Dunne Elder Fennel Garve Halver Inger Kelve Lorne Marle
            Nether Orle Pender Quarle Rothe Selver Tarve Ulver Wether Yarne""",
        "ending": """
            bury by combe cote dale ford ham mere mouth stead stow thorpe ton wick worth""",
    }.items()
}
