"""What the recipes train on: texts, prompts, and the generated tasks.

Used by others: `BOX_COLUMNS`, `BOX_ROWS`, `CANVAS_WIDTH`, `END_OF_TEXT_ID`, `NUM_CELLS`,
`Prompt`, `Puzzles`, `SIZE`, `SUDOKU`, `SYMBOLS`, `TASKS`, `Task`, `TaskTexts`, `Windows`,
`encode`, `is_held_out`, `read_corpus`, `read_prompts`, `symbol_tokenizer`, `text_files`,
`train_vocabulary`.
"""
