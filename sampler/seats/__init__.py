"""What a seated request brings beside the arrays: its record, its grammar, its known text.

Used by others: `Constraint`, `Endings`, `Grammars`, `SeatRecord`, `WaitingQueue`,
`begin_proposals`, `check_prediction`, `endings_for`, `proposer_for`.
"""
