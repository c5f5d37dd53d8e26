"""Tools and forced forms: calls read from an answer, and the grammars that hold answers to a form.

Used by others: `ArgumentsPart`, `CallPart`, `CallRules`, `PartReader`, `ReasoningPart`,
`ReasoningRules`, `StreamedPart`, `StreamedPartReader`, `ToolStyle`, `WholePart`,
`arguments_schema`, `check_grammar`, `forced_grammar`, `grammar_of`, `rules_of`, `strict_grammar`,
`style_of`, `tool_values`, `untaught_messages`.
"""
