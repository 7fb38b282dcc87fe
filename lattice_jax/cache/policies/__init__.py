"""Cache policies, one a file: which tokens stay, and the fields that only this policy reads.

A file states a `POLICY` (see `record.PolicyRecord`); its name is the file's, and `registry.NAMES` lists it.
Importing it needs no JAX, because configs and the command line's help are made from it; a score imports JAX when it is
computed. docs/cache_policies.md says what each policy keeps and how it differs from the published method of that name.
"""
