"""What sequences are made of, by kind. Each keeps a model of what exists, so that most requests are nearly right."""
from . import admin, data, groups, moves, outages, transactions

KINDS = {
    'admin': admin.sequence, 'data': data.sequence, 'groups': groups.sequence, 'moves': moves.sequence,
    'outages': outages.sequence, 'transactions': transactions.sequence
}
