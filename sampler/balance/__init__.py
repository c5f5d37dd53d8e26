"""One token by AR or a window of drafts, and how wide, from what steps cost and gain.

Used by others: `Balance`, `Load`, `StepShape`, `StepTimeModel`, `StepTimeReport`, `branch_costs`,
`canvas_costs`, `rank_costs`.
"""
