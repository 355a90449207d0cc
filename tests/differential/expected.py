"""The differences that are meant or known, each with its reason. One that occurs no more is told, so that the table stays true.

Paths are without indices (`Topics[].ErrorCode`). All but the reason are regular expressions over whole values as they are
printed: error codes by name in quotes, structs by what names them in braces. An entry may only be as wide as its reason.
"""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Expected:
    """`kinds` are those that it occurs in, `note` what the request was wrong in."""
    kinds: str
    api: str
    path: str
    kafka: str
    ottla: str
    reason: str
    note: str = '.*'


ALTER = 'AlterConfigs|IncrementalAlterConfigs'
ASSIGNED = r'Assignment\.TopicPartitions.*|Groups\[\]\.Members\[\]\.(Target)?Assignment\.TopicPartitions.*'
PRODUCED = r'Responses\[\]\.PartitionResponses\[\]\.'
FETCHED = r'Responses\[\]\.Partitions\[\]\.'
OWN = 'Ottla has topic configs of its own'
UNSERVED = 'an API that is not served yet closes the connection (docs/gaps.md)'
TWO_FAULTS = 'of a config change that is wrong in two ways, or wrong for a broker, the other error is told'
NO_ISOLATION = 'an isolation level that does not exist is the request\'s fault, and not a failure of the broker'
UNREADABLE = 'a batch in a codec that does not exist, or that does not decode, is the producer\'s fault'
LOOSE = 'batches whose offsets, producer or epoch contradict each other are refused'
FENCE = 'a fence for a successor takes two epochs and is never told to the one who is fenced (R46)'
ASSIGNOR = 'which of several partitions a member gets: another implementation of the assignors'
STILL_LISTED = 'a broker that was just fenced is listed for 10 s more'
REPLACED = 'a reassignment that replaces another one: Kafka counts who was to come as one of those from before'
EARLIER = 'what is refused by the log is refused before it is added to the transaction'

EXPECTED = [
    Expected('admin data groups moves outages transactions', 'CreateTopics|DescribeConfigs', r'.*Configs\[\]', "'<absent>'", r'\{ottla\..*\}',
             OWN),
    # Admin.
    Expected('admin', 'DescribeConfigs', r'Results\[\]\.Configs\[\]\.Synonyms', '.*min.insync.replicas.*',
             '.*min.insync.replicas.*',
             'min.insync.replicas of a broker\'s own file counts when the cluster is formed, and is no synonym'),
    Expected('admin', 'DescribeClientQuotas|DescribeDelegationToken|GetTelemetrySubscriptions|DescribeUserScramCredentials', '',
             '.*', "'closed'", UNSERVED),
    Expected('admin', 'IncrementalAlterConfigs', r'Responses\[\]\.ErrorCode', "'UNKNOWN_SERVER_ERROR'", "'INVALID_REQUEST'",
             'a config operation that does not exist is the request\'s fault, and not a failure of the broker'),
    Expected('admin', ALTER, r'Responses\[\]\.ErrorCode', "'INVALID_(CONFIG|REQUEST)'",
             "'(INVALID_CONFIG|INVALID_REQUEST|INVALID_TOPIC_EXCEPTION|UNKNOWN_TOPIC_OR_PARTITION|BROKER_ID_NOT_REGISTERED)'",
             TWO_FAULTS),
    Expected('admin', ALTER, r'Responses\[\]\.ErrorCode', "'NONE'", "'INVALID_CONFIG'",
             'an unknown broker config is refused: there are no plugins', 'type 4'),
    Expected('admin', 'ElectLeaders', r'(ReplicaElectionResults\[\]\.PartitionResult\[\]\.)?ErrorCode', '.*', "'INVALID_REQUEST'",
             'an election that names a partition twice, or is of no type that there is, is refused', 'twice|no such type'),
    Expected('admin', 'ElectLeaders', r'ReplicaElectionResults(\[\])?', r".*\'PartitionResult\': \[\].*|\{.*\}",
             r"\[\]|'<absent>'", 'an election of all partitions does not name the topics of which none had to be elected'),
    Expected('admin', 'Metadata', '.*', '.*', '.*', 'Metadata by topic id is answered from version 10 on, not from 12', 'by id'),
    Expected('admin', 'Metadata|DescribeTopicPartitions', r'Topics\[\]\.TopicAuthorizedOperations', '3576', '-2147483648',
             'there are no authorised operations on a topic that does not exist'),
    Expected('admin', 'UpdateFeatures', r'Results\[\]\.ErrorMessage', "'text'", 'None', 'success has no message'),
    Expected('admin', 'UpdateFeatures', 'ErrorCode', "'INVALID_UPDATE_VERSION'", "'NONE'",
             'metadata.version counts formats of Ottla\'s own', 'metadata.version .*'),
    Expected('admin', 'DescribeConfigs', r'.*\.Value', r"'-?\d+\.0'", r"'-?\d+'",
             'a number with a fraction is described as it was set'),
    Expected('admin', 'CreateTopics', 'Topics', '.*REQUEST_TIMED_OUT.*', '.*REQUEST_TIMED_OUT.*',
             'a topic that is named twice is told of once'),
    # Produce and fetch.
    Expected('data', 'Fetch', '.*ErrorCode', '.*', "'INVALID_REQUEST'", NO_ISOLATION, 'isolation 2'),
    Expected('data', 'Fetch', 'SessionId', '.*', '0', 'a fetch session of no partitions is not kept', 'full|again'),
    Expected('data', 'OffsetForLeaderEpoch', r'Topics\[\]\.Partitions\[\]\.(EndOffset|LeaderEpoch)', r'-?\d+', r'-?\d+',
             'a negative leader epoch is one before all'),
    Expected('data outages transactions', 'Produce', PRODUCED + 'LogStartOffset', r'\d+', '-1',
             'a refused produce does not tell where the log starts'),
    Expected('data outages', 'Produce', PRODUCED + 'LogAppendTimeMs', r"\d+|'<now>'", '-1',
             'when a duplicate was appended is told where the topic has append times'),
    Expected('data', 'Produce', PRODUCED + 'ErrorCode', "'UNKNOWN_SERVER_ERROR'",
             "'(UNSUPPORTED_COMPRESSION_TYPE|INVALID_RECORD)'", UNREADABLE, 'codec .|lies about gzip'),
    Expected('data', 'Produce', PRODUCED + 'ErrorCode', "'(NONE|INVALID_TIMESTAMP|UNKNOWN_SERVER_ERROR|INVALID_PRODUCER_EPOCH)'",
             "'INVALID_RECORD'", LOOSE, 'deltas do not say the last|producer without epoch.*'),
    Expected('data transactions', 'Produce', PRODUCED + 'ErrorCode', "'TRANSACTIONAL_ID_AUTHORIZATION_FAILED'",
             "'INVALID_RECORD'",
             'a transactional batch without a transactional id is the producer\'s fault: nobody was to be authorised',
             '.*transactional.*|.*v[12]'),
    Expected('data', 'Produce', PRODUCED + 'ErrorCode', "'UNKNOWN_SERVER_ERROR'", "'NONE'",
             'compressed batches are not decoded where nothing asks for it', 'lies about gzip'),
    Expected('data', 'Fetch', FETCHED + r'Records\[\]\.Attributes', r'\d+', r'163\d\d|6[4-9]|7\d', 'bits of a batch that mean nothing are kept'),
    Expected('data', 'Produce', PRODUCED + 'ErrorCode', "'CORRUPT_MESSAGE'", "'INVALID_RECORD'",
             'what is too short for the header of a batch is none', 'short'),
    Expected('data', 'Fetch', FETCHED + 'AbortedTransactions', 'None', r'\[\]', 'no aborted transactions are an empty list'),
    Expected('data transactions', 'Fetch', FETCHED + 'CurrentLeader', 'None', r'\{.*\}',
             'whoever asks the wrong broker is told the leader from version 12 on, where the field begins'),
    # Replicas and leaders.
    Expected('moves', 'ListPartitionReassignments', r'Topics(\[\](\.Partitions(\[\](\.(Adding|Removing)?Replicas(\[\])?)?)?)?)?', '.*', '.*',
             REPLACED, 'replaced'),
    Expected('moves', 'Metadata', r'Topics\[\]\.Partitions\[\]\.LeaderEpoch', r'\d+', r'\d+', REPLACED, 'replaced'),
    Expected('moves', 'ListPartitionReassignments', r'Topics(\[\]\.Partitions)?', '.*', '.*',
             'a partition that is named twice is told of once', 'twice'),
    Expected('moves', 'DescribeConfigs', r'Results\[\]\.Configs\[\]\.Synonyms', r'.*replication\.throttled\.rate.*',
             r'.*replication\.throttled\.rate.*', 'the rates of throttles have a default (docs/gaps.md)'),
    Expected('outages', 'Metadata', r'Brokers\[\]', "'<absent>'", r'\{\d\}', STILL_LISTED),
    Expected('outages', 'DescribeTopicPartitions', r'Topics\[\]\.Partitions\[\]\.LastKnownElr', r'\[\]', r'\[\d.*\]',
             'all that may have what was committed are known when ISR and ELR are too few, not when they are empty (R35)'),
    Expected('outages', 'DescribeTopicPartitions', r'Topics\[\]\.Partitions\[\]\.EligibleLeaderReplicas', r'\[\d.*\]', r'\[\]',
             'a replica that left the assignment is no eligible leader'),
    # Groups.
    Expected('groups transactions', 'OffsetFetch', r'.*\.(Lag|LagMs)', "'<absent>'|-1", r'-?\d+',
             'the lag of a group is told in tagged fields that Kafka does not have'),
    Expected('groups', 'DeleteGroups', r'Results\[\]\.ErrorCode', "'NONE'", "'GROUP_ID_NOT_FOUND'",
             'a join that was refused leaves no empty group behind'),
    Expected('groups', 'ConsumerGroup(Describe|Heartbeat)', ASSIGNED, '.*', '.*', ASSIGNOR),
    Expected('groups', 'OffsetCommit', r'Topics\[\]\.Partitions\[\]\.ErrorCode', '.*', "'STALE_MEMBER_EPOCH'",
             'a static member that came back commits nothing in the epochs of the one before', 'epoch before'),
    # Transactions.
    Expected('transactions', 'EndTxn', 'ErrorCode', "'(NONE|INVALID_TXN_STATE)'", "'PRODUCER_FENCED'", FENCE, 'v2 .*'),
    Expected('transactions', 'InitProducerId', 'ErrorCode', "'(NONE|CONCURRENT_TRANSACTIONS)'", "'PRODUCER_FENCED'", FENCE,
             'again.*'),
    Expected('transactions', 'DescribeTransactions', r'TransactionStates\[\]\.Topics\[\](\.Partitions.*)?', '.*', "'<absent>'",
             EARLIER),
    Expected('transactions', 'TxnOffsetCommit', r'Topics\[\]\.Partitions\[\]\.ErrorCode', "'UNKNOWN_MEMBER_ID'",
             "'ILLEGAL_GENERATION'",
             'a group exists once its first offsets are committed, not while they wait for their transaction'),
]
