"""What a seated request brings beside the arrays: its record, its grammar, its known text.

Used by others: `CompiledGrammar`, `Constraint`, `Grammars`, `JSON_OPTIONS`, `SeatRecord`,
`WaitingQueue`, `begin_proposals`, `check_prediction`, `endings_for`, `grammar_source`,
`proposer_for`.
"""
