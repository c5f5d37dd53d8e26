"""From the text of running answers to bodies and events.

Used by others: `Answers`, `ChatReply`, `ClientGone`, `CompletionReply`, `EventStream`,
`MessagesReply`, `Reply`, `ReplyFacts`, `ResponsesReply`, `UsageCount`, `token_text`,
`unless_disconnected`, `write_events`.
"""
