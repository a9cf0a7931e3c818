"""What a config will do, before it does it: variables, plans, and what each depth of freezing costs."""
