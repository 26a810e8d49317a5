"""Pure choice: filters, scorers, pickers and the decision to disaggregate. Nothing here awaits or mutates."""
