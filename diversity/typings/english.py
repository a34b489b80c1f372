"""English words that carry no subject: stop words of topic labels and keyphrases."""

from __future__ import annotations

_WORDS = """
a about above across after again against all almost along already also although always am among an and another any
anybody anyone anything anyway are aren't around as ask at away back be became because become been before being below
between both but by came can can't cannot come could couldn't did didn't do does doesn't doing don't done down due during
each either else enough etc even ever every everyone everything few for from further gave get gets getting give given
gives go goes going gone got had hadn't has hasn't have haven't having he he'd he'll he's hello help hence her here here's hers
herself hi him himself his how how's however i i'd i'll i'm i've ie if in indeed instead into is isn't it it'd it'll it's its
itself just keep kept know known last least less let let's like likely made mainly make makes making many may maybe me
mean means might mine more moreover most mostly much must my myself namely need needs neither never nevertheless next no
nobody none nor not nothing now of off often oh ok okay on once one ones only onto or other others otherwise our ours
ourselves out over own per perhaps please put quite rather really said same saw say says see seem seemed seems seen
several shall she she'd she'll she's should shouldn't show since so some somebody someone something sometimes soon still
such sure take taken tell than thank thanks that that'll that's the their theirs them themselves then there there's
therefore these they they'd they'll they're they've thing things this those though through thus till to together too took
toward towards two under until up upon us use used uses using usually various very via want wants was wasn't way ways we
we'd we'll we're we've well went were weren't what what's whatever when where where's whereas whether which while who
who's whole whom whose why will with within without won't would wouldn't yes yet you you'd you'll you're you've your yours
yourself yourselves s t d ll m re ve eg e.g i.e
"""
STOP_WORDS = frozenset(_WORDS.split())
