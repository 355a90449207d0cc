//! What is explored: which clients and partitions there are, and how much may befall them.

use model::Rules;

/// How often each thing may happen on one path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bounds {
    /// Transactions of each client.
    pub transactions: u8,
    /// Requests that arrive once more, and clients that ask again although the first request is on its way.
    pub copies: u8,
    /// Answers that are lost.
    pub losses: u8,
    /// Coordinators that move.
    pub coordinators: u8,
    /// Partitions whose leader moves.
    pub leaders: u8,
    /// Transactions whose time runs out.
    pub timeouts: u8,
    /// Writes of the coordinator that are refused.
    pub refusals: u8,
    /// Clients that ask for an epoch although they have one (KIP-360).
    pub recoveries: u8,
    /// Clients that ask for the contrary of what they asked for.
    pub turns: u8,
    /// Offsets that are committed outside of transactions.
    pub commits: u8,
    /// Deletions of the offset.
    pub deletes: u8,
}

/// See [`super`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The transaction version of each client; they have one transactional id.
    pub clients: &'static [i16],
    /// How many partitions they write to.
    pub partitions: u8,
    /// Whether they commit an offset of a group, too.
    pub offsets: bool,
    /// A client that takes itself for a member of that group, and is none.
    pub stranger: Option<u8>,
    /// The epoch that the id has before the first of them comes; none where nobody had it.
    pub first_epoch: Option<i16>,
    /// How much may happen.
    pub bounds: Bounds,
    /// Which rules hold.
    pub rules: Rules,
}

impl Scenario {
    /// The same, with these rules.
    #[must_use]
    pub fn with(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// Whether the clients differ by their numbers only.
    pub(crate) fn is_symmetric(&self) -> bool {
        self.stranger.is_none() && self.clients.windows(2).all(|two| two[0] == two[1])
    }
}

const NOTHING: Bounds = Bounds {
    transactions: 1,
    copies: 0,
    losses: 0,
    coordinators: 0,
    leaders: 0,
    timeouts: 0,
    refusals: 0,
    recoveries: 0,
    turns: 0,
    commits: 0,
    deletes: 0,
};
const TWO: Bounds = Bounds { transactions: 2, ..NOTHING };

fn scenario(name: &'static str, clients: &'static [i16], partitions: u8, bounds: Bounds) -> Scenario {
    let (stranger, first_epoch, rules) = (None, None, Rules::all());
    Scenario { name, clients, partitions, offsets: false, stranger, first_epoch, bounds, rules }
}

fn offsets(name: &'static str, clients: &'static [i16], partitions: u8, bounds: Bounds) -> Scenario {
    Scenario { offsets: true, ..scenario(name, clients, partitions, bounds) }
}

/// What is explored to the end within seconds, also by a program that is not optimised.
#[must_use]
pub fn small() -> Vec<Scenario> {
    vec![
        scenario("one producer", &[2], 2, NOTHING),
        scenario("one producer of version 1", &[1], 2, NOTHING),
        scenario("two transactions", &[2], 1, Bounds { copies: 1, ..TWO }),
        scenario("two transactions of version 1", &[1], 1, Bounds { copies: 1, ..TWO }),
        scenario("a fence", &[2, 2], 1, NOTHING),
        scenario("a fence of version 1", &[1, 1], 1, NOTHING),
        scenario("a fence, both versions", &[1, 2], 1, NOTHING),
        scenario("a timeout", &[2], 2, Bounds { timeouts: 1, ..NOTHING }),
        scenario("a timeout of version 1", &[1], 2, Bounds { timeouts: 1, ..NOTHING }),
        scenario("a timeout, and it recovers", &[2], 1, Bounds { timeouts: 1, recoveries: 1, ..NOTHING }),
        scenario("a timeout of version 1, and it recovers", &[1], 1, Bounds { timeouts: 1, recoveries: 1, ..NOTHING }),
        scenario("a timeout, and a successor", &[2, 2], 1, Bounds { timeouts: 1, ..NOTHING }),
        scenario("another coordinator", &[2], 1, Bounds { coordinators: 1, ..NOTHING }),
        scenario("another coordinator of version 1", &[1], 1, Bounds { coordinators: 1, ..NOTHING }),
        scenario("another leader", &[2], 1, Bounds { leaders: 1, ..NOTHING }),
        scenario("another leader of version 1", &[1], 1, Bounds { leaders: 1, ..NOTHING }),
        scenario("a lost answer", &[2], 1, Bounds { losses: 1, turns: 1, ..NOTHING }),
        scenario("a lost answer of version 1", &[1], 1, Bounds { losses: 1, turns: 1, ..NOTHING }),
        scenario("refused writes", &[2], 1, Bounds { refusals: 2, ..NOTHING }),
        scenario("a producer that recovers", &[2, 2], 1, Bounds { recoveries: 1, ..NOTHING }),
        Scenario { first_epoch: Some(i16::MAX - 2), ..scenario("the last epochs", &[2], 1, TWO) },
        Scenario { first_epoch: Some(i16::MAX - 1), ..scenario("no epoch left", &[2], 1, NOTHING) },
        scenario("a late marker of version 1", &[1], 1, Bounds { coordinators: 1, copies: 1, ..TWO }),
        scenario("a fence of both versions, a late copy", &[1, 2], 1, Bounds { copies: 1, ..NOTHING }),
        scenario("everything moves", &[2], 1, Bounds { coordinators: 1, leaders: 1, losses: 1, ..NOTHING }),
        offsets("an offset", &[2], 1, NOTHING),
        offsets("an offset of version 1", &[1], 1, NOTHING),
        offsets("offsets beside transactions", &[2], 0, Bounds { commits: 1, deletes: 1, ..NOTHING }),
        offsets("offsets and another leader", &[2], 0, Bounds { leaders: 1, commits: 1, ..NOTHING }),
        Scenario { stranger: Some(0), ..offsets("a stranger's offset", &[2], 0, NOTHING) },
    ]
}

/// What takes minutes, optimised.
#[must_use]
pub fn large() -> Vec<Scenario> {
    vec![
        scenario("a fence, two partitions", &[2, 2], 2, NOTHING),
        scenario("a fence of version 1, two partitions", &[1, 1], 2, NOTHING),
        scenario("both versions", &[1, 2], 1, Bounds { copies: 2, losses: 1, ..NOTHING }),
        scenario("a fence and late copies", &[2, 2], 1, Bounds { copies: 2, ..NOTHING }),
        scenario("a fence and another coordinator", &[2, 2], 1, Bounds { coordinators: 1, ..NOTHING }),
        scenario("a fence and another leader", &[2, 2], 1, Bounds { leaders: 1, ..NOTHING }),
        scenario("two transactions, late copies", &[2], 1, Bounds { copies: 2, losses: 1, ..TWO }),
        scenario("three transactions, late copies", &[2], 1, Bounds { transactions: 3, copies: 2, ..NOTHING }),
        scenario("two transactions and a timeout", &[2], 2, Bounds { timeouts: 1, copies: 1, ..TWO }),
        scenario("two of version 1, another coordinator", &[1], 1, Bounds { coordinators: 1, copies: 2, ..TWO }),
        scenario("two clients that recover", &[2, 2], 1, Bounds { recoveries: 2, ..TWO }),
        offsets("offsets of two clients", &[2, 2], 0, Bounds { commits: 1, ..TWO }),
        offsets("offsets, everything moves", &[2], 0, Bounds { leaders: 1, coordinators: 1, commits: 1, ..TWO }),
    ]
}

/// Beyond what can be explored to the end: for random walks.
#[must_use]
pub fn endless() -> Vec<Scenario> {
    let all = Bounds {
        transactions: 5,
        copies: 8,
        losses: 4,
        coordinators: 3,
        leaders: 4,
        timeouts: 3,
        refusals: 3,
        recoveries: 3,
        turns: 2,
        commits: 3,
        deletes: 2,
    };
    let first_epoch = Some(i16::MAX - 6);
    vec![
        offsets("transactions, everything", &[2, 2], 2, all),
        offsets("transactions, everything of version 1", &[1, 1], 2, all),
        offsets("transactions, everything of both", &[1, 2], 2, all),
        Scenario { first_epoch, ..offsets("transactions, the last epochs", &[2, 2], 2, all) },
    ]
}

/// Whether a rule is about what these models have: sections 12 to 14 of the rules.
#[must_use]
pub fn asks(rule: model::Rule) -> bool {
    let name = format!("{rule:?}");
    ["R40", "R43", "R44", "R45", "R46", "R47", "R48", "R49", "R50", "R51"].iter().any(|of| name.starts_with(of))
}
