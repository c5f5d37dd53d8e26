"""Tools and forced forms: calls read from an answer, and the grammars that hold answers to a form.

Used by others: `ArgumentsPart`, `CallPart`, `CallRules`, `PartReader`, `StreamedPart`,
`StreamedPartReader`, `ToolStyle`, `arguments_schema`, `check_grammar`, `forced_grammar`,
`grammar_of`, `strict_grammar`, `style_of`, `tool_values`, `untaught_messages`.
"""
