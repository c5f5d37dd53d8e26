"""What is known of every sequence, in arrays with one line per seat.

Used by others: `Branches`, `CacheKind`, `CanvasKnobs`, `CanvasScores`, `Decoding`, `IntArray`,
`LatentTable`, `Lookup`, `Mode`, `NEVER_EDIT`, `Preference`, `Rule`, `Schedule`, `SeatState`,
`SequenceTable`, `Stage`, `TOKEN_KINDS`, `Uncertainty`, `accept`, `leftmost_part`,
`resolve_decoding`.
"""
