"""The command line: one short file a verb, each composing the rooms below."""
