// The Java client (classic group protocol) and Kafka's own command line tools against a cluster.
//
// The tools run in this one JVM, through their main methods: a JVM start for each would cost more than the tool. Their
// exit is turned into an exception, their shutdown hooks run when main has returned, their output is captured.
// Prints a line for each check, as tests/lib/checks.py does.

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStream;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.admin.TransactionState;
import org.apache.kafka.clients.consumer.ConsumerGroupMetadata;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.ApiException;
import org.apache.kafka.common.errors.InvalidProducerEpochException;
import org.apache.kafka.common.errors.InvalidTopicException;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.errors.RecordTooLargeException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.common.utils.Exit;

public class ClientSuite {
    static final String B = System.getenv("BOOTSTRAP");
    static final int NODES = B.split(",").length;
    static final PrintStream OUT = System.out;
    static final InputStream IN = System.in;
    static Admin admin;

    interface Body { void run() throws Exception; }

    record Check(String sentence, Body body) { }

    static class ToolExit extends Error {
        ToolExit() { super("exit", null, false, false); }
    }

    // What a tool left behind.
    record Ran(int code, String out, String err) {
        Ran ok() {
            if (code != 0) throw new AssertionError("exit code " + code + ": " + err + out);
            return this;
        }

        Ran says(String... parts) {
            for (String part : parts) if (!out.contains(part)) throw new AssertionError("no '" + part + "' in: " + out + err);
            return this;
        }

        Ran fails(String part) {
            if (!(out + err).contains(part)) throw new AssertionError("no '" + part + "' in: " + out + err);
            return this;
        }

        List<String> lines() { return out.isBlank() ? List.of() : Arrays.asList(out.strip().split("\\R")); }
    }

    static Ran tool(String name, String... arguments) throws Exception { return toolWith("", name, arguments); }

    static Ran toolWith(String given, String name, String... arguments) throws Exception {
        ByteArrayOutputStream out = new ByteArrayOutputStream(), err = new ByteArrayOutputStream();
        PrintStream realErr = System.err;
        List<Runnable> hooks = Collections.synchronizedList(new ArrayList<>());
        // A tool that catches everything sees its own exit as a failure and exits again: the first code is the true one.
        List<Integer> codes = new ArrayList<>();
        Exit.Procedure exit = (code, message) -> {
            codes.add(code);
            throw new ToolExit();
        };
        Exit.setExitProcedure(exit);
        Exit.setHaltProcedure(exit);
        Exit.setShutdownHookAdder((hook, runnable) -> hooks.add(runnable));
        System.setIn(new ByteArrayInputStream(given.getBytes(StandardCharsets.UTF_8)));
        System.setOut(new PrintStream(out, true));
        System.setErr(new PrintStream(err, true));
        try {
            Class<?> tool = Class.forName(name.startsWith("kafka.") ? name : "org.apache.kafka.tools." + name);
            tool.getMethod("main", String[].class).invoke(null, (Object) arguments);
        } catch (InvocationTargetException e) {
            if (!(e.getCause() instanceof ToolExit)) {
                codes.add(1);
                e.getCause().printStackTrace(System.err);
            }
        } finally {
            hooks.forEach(Runnable::run);
            System.out.flush();
            System.setOut(OUT);
            System.setErr(realErr);
            System.setIn(IN);
        }
        return new Ran(codes.isEmpty() ? 0 : codes.get(0), out.toString(StandardCharsets.UTF_8), err.toString(StandardCharsets.UTF_8));
    }

    static String[] with(String... more) {
        List<String> all = new ArrayList<>(List.of("--bootstrap-server", B));
        all.addAll(Arrays.asList(more));
        return all.toArray(new String[0]);
    }

    static String unique(String prefix) { return prefix + "-" + UUID.randomUUID().toString().substring(0, 8); }

    static void equal(Object got, Object want, String what) {
        if (!got.equals(want)) throw new AssertionError(what + ": got " + got + ", want " + want);
    }

    interface Condition { boolean holds() throws Exception; }

    static void eventually(Condition condition, String what) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(30);
        Exception last = null;
        do {
            try {
                if (condition.holds()) return;
            } catch (Exception e) {
                last = e;
            }
            Thread.sleep(50);
        } while (System.nanoTime() < deadline);
        throw new AssertionError(what + ": not within 30 s, last " + last);
    }

    static String topic(int partitions, Map<String, String> configs) throws Exception {
        String name = unique("java");
        admin.createTopics(List.of(new NewTopic(name, partitions, (short) 3).configs(configs))).all().get(30, TimeUnit.SECONDS);
        eventually(() -> ready(name, partitions), "leaders of " + name);
        return name;
    }

    static boolean ready(String name, int partitions) throws Exception {
        TopicDescription got = admin.describeTopics(List.of(name)).allTopicNames().get().get(name);
        return got.partitions().size() == partitions && got.partitions().stream().allMatch(p -> p.leader() != null);
    }

    static Properties properties(String... more) {
        Properties p = new Properties();
        p.put("bootstrap.servers", B);
        for (int i = 0; i < more.length; i += 2) p.put(more[i], more[i + 1]);
        return p;
    }

    static KafkaProducer<String, String> producer(String... more) {
        return new KafkaProducer<>(properties(more), new StringSerializer(), new StringSerializer());
    }

    static KafkaConsumer<String, String> consumer(String group, String... more) {
        Properties p = properties("group.protocol", "classic", "enable.auto.commit", "false", "auto.offset.reset", "earliest",
            "session.timeout.ms", "6000", "heartbeat.interval.ms", "300");
        if (group != null) p.put("group.id", group);
        for (int i = 0; i < more.length; i += 2) {
            if (more[i + 1] == null) p.remove(more[i]);
            else p.put(more[i], more[i + 1]);
        }
        return new KafkaConsumer<>(p, new StringDeserializer(), new StringDeserializer());
    }

    static List<ConsumerRecord<String, String>> take(KafkaConsumer<String, String> c, int n) {
        List<ConsumerRecord<String, String>> out = new ArrayList<>();
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(30);
        while (out.size() < n) {
            c.poll(Duration.ofMillis(200)).forEach(out::add);
            if (System.nanoTime() > deadline) throw new AssertionError(out.size() + " of " + n + " records");
        }
        return out;
    }

    static List<ConsumerRecord<String, String>> read(String topic, int n, String... more) {
        try (KafkaConsumer<String, String> c = consumer(null, more)) {
            c.assign(List.of(new TopicPartition(topic, 0)));
            c.seekToBeginning(c.assignment());
            return take(c, n);
        }
    }

    static void send(String topic, int from, int to) {
        try (KafkaProducer<String, String> p = producer()) {
            for (int i = from; i < to; i++) p.send(new ProducerRecord<>(topic, 0, null, "v" + i));
        }
    }

    static Throwable refusal(Future<?> future) throws InterruptedException {
        try {
            future.get();
        } catch (ExecutionException e) {
            return e.getCause();
        }
        throw new AssertionError("it was not refused");
    }

    // The client

    static void producesAndConsumes() throws Exception {
        String topic = topic(1, Map.of());
        int next = 0;
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            try (KafkaProducer<String, String> p = producer("compression.type", codec, "linger.ms", "5")) {
                List<Future<RecordMetadata>> sent = new ArrayList<>();
                for (int i = 0; i < 200; i++) {
                    ProducerRecord<String, String> r = new ProducerRecord<>(topic, 0, i % 2 == 0 ? null : "key", "v" + (next + i));
                    r.headers().add("h", codec.getBytes()).add("h", null);
                    sent.add(p.send(r));
                }
                for (Future<RecordMetadata> f : sent) equal(f.get().offset(), (long) next++, "acknowledged offset");
            }
        }
        int i = 0;
        for (ConsumerRecord<String, String> r : read(topic, next)) {
            equal(r.offset(), (long) i, "offset");
            equal(r.value(), "v" + i, "value");
            equal(r.headers().toArray().length, 2, "headers");
            i++;
        }
    }

    static void acks() throws Exception {
        String topic = topic(1, Map.of());
        for (String acks : List.of("all", "1", "0")) {
            try (KafkaProducer<String, String> p = producer("acks", acks, "enable.idempotence", String.valueOf(acks.equals("all")))) {
                p.send(new ProducerRecord<>(topic, acks)).get();
            }
        }
        equal(read(topic, 3).stream().map(ConsumerRecord::value).toList(), List.of("all", "1", "0"), "values");
    }

    static void tenMegabytes() throws Exception {
        String topic = topic(1, Map.of("max.message.bytes", "11000000"));
        String value = "x".repeat(10 << 20);
        try (KafkaProducer<String, String> p = producer("max.request.size", "11000000", "buffer.memory", "67108864")) {
            p.send(new ProducerRecord<>(topic, value)).get();
        }
        equal(read(topic, 1).get(0).value().length(), value.length(), "size");
    }

    static void refusals() throws Exception {
        String small = topic(1, Map.of("max.message.bytes", "1000"));
        try (KafkaProducer<String, String> p = producer("max.block.ms", "10000")) {
            equal(refusal(p.send(new ProducerRecord<>(small, "x".repeat(5000)))).getClass(), RecordTooLargeException.class, "too large");
            equal(refusal(p.send(new ProducerRecord<>("not valid!", "x"))).getClass(), InvalidTopicException.class, "invalid topic");
        }
        equal(refusal(admin.createTopics(List.of(new NewTopic(small, 1, (short) 3))).all()).getClass(), TopicExistsException.class, "existing");
    }

    // A member polls on its own thread and says what it owns.
    static class Member implements AutoCloseable {
        final KafkaConsumer<String, String> consumer;
        volatile Set<TopicPartition> owned = Set.of();
        volatile boolean leaving;
        final AtomicInteger rebalances = new AtomicInteger();
        final List<String> seen = Collections.synchronizedList(new ArrayList<>());
        final CountDownLatch left = new CountDownLatch(1);

        Member(String group, String topic, String... more) {
            consumer = consumer(group, more);
            consumer.subscribe(List.of(topic), new ConsumerRebalanceListener() {
                @Override
                public void onPartitionsAssigned(Collection<TopicPartition> partitions) { rebalances.incrementAndGet(); }

                @Override
                public void onPartitionsRevoked(Collection<TopicPartition> partitions) { rebalances.incrementAndGet(); }
            });
            new Thread(() -> {
                try {
                    while (!leaving) {
                        consumer.poll(Duration.ofMillis(100)).forEach(r -> seen.add(r.value()));
                        owned = new HashSet<>(consumer.assignment());
                    }
                    consumer.close();
                } finally {
                    owned = Set.of();
                    left.countDown();
                }
            }).start();
        }

        @Override
        public void close() throws InterruptedException {
            leaving = true;
            left.await(20, TimeUnit.SECONDS);
        }
    }

    static boolean shared(int partitions, Member... members) {
        List<TopicPartition> all = new ArrayList<>();
        for (Member m : members) {
            if (m.owned.isEmpty()) return false;
            all.addAll(m.owned);
        }
        return all.size() == partitions && new HashSet<>(all).size() == partitions;
    }

    static void groups(String assignor) throws Exception {
        String topic = topic(6, Map.of()), group = unique("g");
        String[] how = {"partition.assignment.strategy", "org.apache.kafka.clients.consumer." + assignor};
        try (Member a = new Member(group, topic, how)) {
            eventually(() -> shared(6, a), "one member to own all");
            try (Member b = new Member(group, topic, how); Member c = new Member(group, topic, how)) {
                eventually(() -> shared(6, a, b, c), "three members to share");
                send(topic, 0, 50);
                eventually(() -> {
                    Set<String> all = new TreeSet<>(a.seen);
                    all.addAll(b.seen);
                    all.addAll(c.seen);
                    return all.size() == 50;
                }, "all records");
            }
            eventually(() -> shared(6, a), "one member to own all again");
        }
    }

    static final String[] CLASSIC = {}, NEXT = {"group.protocol", "consumer", "session.timeout.ms", null, "heartbeat.interval.ms", null};

    static String[] instance(String[] protocol, String name) {
        String[] how = Arrays.copyOf(protocol, protocol.length + 2);
        how[protocol.length] = "group.instance.id";
        how[protocol.length + 1] = name;
        return how;
    }

    // One that comes back in time finds its partitions, and nobody else notices.
    static void staticMembers(String[] protocol) throws Exception {
        String topic = topic(6, Map.of()), group = unique("g");
        try (Member a = new Member(group, topic, instance(protocol, "a"))) {
            Set<TopicPartition> had;
            int before;
            try (Member b = new Member(group, topic, instance(protocol, "b"))) {
                eventually(() -> shared(6, a, b), "two members to share");
                had = b.owned;
                before = a.rebalances.get();
            }
            try (Member b = new Member(group, topic, instance(protocol, "b"))) {
                eventually(() -> b.owned.equals(had), "the partitions from before");
                send(topic, 0, 50);
                eventually(() -> a.seen.size() + b.seen.size() >= 50, "all records");
                equal(a.rebalances.get(), before, "what the other member noticed");
                equal(shared(6, a, b), true, "each partition is read by one");
            }
        }
    }

    // In a classic group the later one of two with one name is the member, in one of the next generation the earlier one.
    static void oneInstanceTwice(String[] protocol) throws Exception {
        String topic = topic(1, Map.of()), group = unique("g");
        try (KafkaConsumer<String, String> first = consumer(group, instance(protocol, "a"));
             KafkaConsumer<String, String> second = consumer(group, instance(protocol, "a"))) {
            first.subscribe(List.of(topic));
            eventually(() -> first.poll(Duration.ofMillis(100)).isEmpty() && !first.assignment().isEmpty(), "the partition");
            second.subscribe(List.of(topic));
            KafkaConsumer<String, String> refused = protocol == CLASSIC ? first : second, other = protocol == CLASSIC ? second : first;
            String error = protocol == CLASSIC ? "FencedInstanceIdException" : "UnreleasedInstanceIdException";
            eventually(() -> {
                other.poll(Duration.ofMillis(100));
                try {
                    refused.poll(Duration.ofMillis(100));
                } catch (ApiException e) {
                    equal(e.getClass().getSimpleName(), error, "refused with");
                    return true;
                }
                return false;
            }, error);
            eventually(() -> other.poll(Duration.ofMillis(100)).isEmpty() && other.assignment().size() == 1, "the other one to read");
        }
    }

    static void commits() throws Exception {
        String topic = topic(1, Map.of()), group = unique("g");
        send(topic, 0, 10);
        TopicPartition part = new TopicPartition(topic, 0);
        try (KafkaConsumer<String, String> c = consumer(group)) {
            c.subscribe(List.of(topic));
            take(c, 1);
            c.commitSync(Map.of(part, new OffsetAndMetadata(4, "note")));
        }
        try (KafkaConsumer<String, String> c = consumer(group)) {
            OffsetAndMetadata got = c.committed(Set.of(part)).get(part);
            equal(got.offset() + got.metadata(), "4note", "committed");
            c.subscribe(List.of(topic));
            equal(take(c, 1).get(0).offset(), 4L, "first offset");
            equal(c.offsetsForTimes(Map.of(part, 0L)).get(part).offset(), 0L, "offset for time 0");
            equal(c.endOffsets(Set.of(part)).get(part), 10L, "end");
        }
    }

    // The tools

    static void topicsTool() throws Exception {
        String topic = unique("tool");
        tool("TopicCommand", with("--create", "--topic", topic, "--partitions", "3", "--replication-factor", "3", "--config", "retention.ms=7200000")).ok().says("Created topic");
        eventually(() -> ready(topic, 3), "leaders");
        tool("TopicCommand", with("--list")).ok().says(topic);
        tool("TopicCommand", with("--describe", "--topic", topic)).ok().says("PartitionCount: 3", "ReplicationFactor: 3", "retention.ms=7200000", "Partition: 2");
        tool("TopicCommand", with("--describe", "--under-replicated-partitions", "--topic", topic)).ok();
        tool("TopicCommand", with("--alter", "--topic", topic, "--partitions", "5")).ok();
        eventually(() -> ready(topic, 5), "five partitions");
        tool("TopicCommand", with("--create", "--topic", topic)).fails("already exists");
        tool("TopicCommand", with("--create", "--topic", unique("t"), "--replication-factor", "9")).fails("replication factor");
        tool("TopicCommand", with("--delete", "--topic", topic)).ok();
        eventually(() -> !tool("TopicCommand", with("--list")).ok().lines().contains(topic), "the topic to go");
    }

    static void consoles() throws Exception {
        String topic = topic(1, Map.of());
        toolWith("k1:one\nk2:two\nk3:three\n", "ConsoleProducer", with("--topic", topic, "--reader-property", "parse.key=true", "--reader-property", "key.separator=:")).ok();
        Ran all = tool("consumer.ConsoleConsumer", with("--topic", topic, "--from-beginning", "--max-messages", "3", "--timeout-ms", "20000",
            "--formatter-property", "print.key=true", "--formatter-property", "print.offset=true", "--command-property", "group.protocol=classic"));
        equal(all.lines(), List.of("Offset:0\tk1\tone", "Offset:1\tk2\ttwo", "Offset:2\tk3\tthree"), "lines");
        Ran one = tool("consumer.ConsoleConsumer", with("--topic", topic, "--partition", "0", "--offset", "1", "--max-messages", "1", "--timeout-ms", "20000"));
        equal(one.lines(), List.of("two"), "by offset");
    }

    static void perf() throws Exception {
        String topic = topic(3, Map.of());
        tool("ProducerPerformance", with("--topic", topic, "--num-records", "50000", "--record-size", "200", "--throughput", "-1",
            "--command-property", "acks=all")).ok().says("50000 records sent");
        Ran read = tool("ConsumerPerformance", with("--topic", topic, "--num-records", "50000", "--timeout", "20000")).ok();
        String[] figures = read.lines().get(read.lines().size() - 1).split(",\\s*");
        int records = Integer.parseInt(figures[4].strip());
        if (records < 50000) throw new AssertionError("it read " + records + ": " + read.out());
    }

    static void groupsTool() throws Exception {
        String topic = topic(1, Map.of()), group = unique("g");
        send(topic, 0, 20);
        try (Member m = new Member(group, topic, "client.id", "someone")) {
            eventually(() -> m.seen.size() == 20, "the records");
            tool("consumer.group.ConsumerGroupCommand", with("--list")).ok().says(group);
            tool("consumer.group.ConsumerGroupCommand", with("--list", "--state")).ok().says("Stable");
            tool("consumer.group.ConsumerGroupCommand", with("--describe", "--group", group)).ok();
            tool("consumer.group.ConsumerGroupCommand", with("--describe", "--group", group, "--members", "--verbose")).ok().says("someone", topic);
            tool("consumer.group.ConsumerGroupCommand", with("--describe", "--group", group, "--state")).ok().says("Stable", "range");
            tool("consumer.group.ConsumerGroupCommand", with("--delete", "--group", group)).fails("not empty");
        }
        tool("consumer.group.ConsumerGroupCommand", with("--reset-offsets", "--group", group, "--topic", topic, "--to-offset", "5", "--execute")).ok().says(topic);
        Ran lag = tool("consumer.group.ConsumerGroupCommand", with("--describe", "--group", group)).ok();
        List<String> row = lag.lines().stream().filter(l -> l.contains(topic)).findFirst().map(l -> Arrays.asList(l.strip().split("\\s+"))).orElseThrow(() -> new AssertionError(lag.out()));
        if (!row.containsAll(List.of("5", "20", "15"))) throw new AssertionError("offset 5, end 20, lag 15 expected: " + row);
        tool("consumer.group.ConsumerGroupCommand", with("--reset-offsets", "--group", group, "--topic", topic, "--to-earliest", "--dry-run")).ok().says("0");
        tool("consumer.group.ConsumerGroupCommand", with("--delete-offsets", "--group", group, "--topic", topic)).ok().says("Successful");
        tool("consumer.group.ConsumerGroupCommand", with("--reset-offsets", "--group", group, "--topic", topic, "--to-latest", "--execute")).ok();
        tool("consumer.group.ConsumerGroupCommand", with("--delete", "--group", group)).ok().says("successful");
        eventually(() -> !tool("consumer.group.ConsumerGroupCommand", with("--list")).ok().out().contains(group), "the group to go");
        tool("GroupsCommand", with("--list")).ok();
    }

    static void configsTool() throws Exception {
        String topic = topic(1, Map.of());
        String[] of = {"--entity-type", "topics", "--entity-name", topic};
        configs(of, "--alter", "--add-config", "retention.ms=3600000,cleanup.policy=[compact,delete]").ok().says("Completed");
        eventually(() -> configs(of, "--describe").ok().out().contains("retention.ms=3600000"), "the new value");
        configs(of, "--describe").says("cleanup.policy=compact,delete");
        configs(of, "--describe", "--all").ok().says("segment.bytes=1073741824", "min.insync.replicas=");
        configs(of, "--alter", "--delete-config", "retention.ms").ok();
        eventually(() -> !configs(of, "--describe").ok().out().contains("retention.ms="), "the default again");
        configs(of, "--alter", "--add-config", "retention.ms=soon").fails("retention.ms");
        configs(new String[] {"--entity-type", "brokers", "--entity-name", "1"}, "--describe", "--all").ok().says("node.id=1", "log.retention.hours=");
        String[] group = {"--entity-type", "groups", "--entity-name", unique("g")};
        configs(group, "--alter", "--add-config", "consumer.session.timeout.ms=50000").ok();
        eventually(() -> configs(group, "--describe").ok().out().contains("consumer.session.timeout.ms=50000"), "the group's config");
    }

    static Ran configs(String[] entity, String... more) throws Exception {
        List<String> all = new ArrayList<>(Arrays.asList(entity));
        all.addAll(Arrays.asList(more));
        return tool("kafka.admin.ConfigCommand", with(all.toArray(new String[0])));
    }

    static void offsetsTools() throws Exception {
        String topic = topic(1, Map.of());
        send(topic, 0, 30);
        equal(tool("GetOffsetShell", with("--topic", topic)).ok().lines(), List.of(topic + ":0:30"), "latest");
        equal(tool("GetOffsetShell", with("--topic", topic, "--time", "earliest")).ok().lines(), List.of(topic + ":0:0"), "earliest");
        Path file = Files.createTempFile("delete", ".json");
        Files.writeString(file, "{\"partitions\":[{\"topic\":\"" + topic + "\",\"partition\":0,\"offset\":12}],\"version\":1}");
        tool("DeleteRecordsCommand", with("--offset-json-file", file.toString())).ok().says("low_watermark: 12");
        Files.delete(file);
        equal(tool("GetOffsetShell", with("--topic", topic, "--time", "earliest")).ok().lines(), List.of(topic + ":0:12"), "earliest after the deletion");
    }

    static void clusterTools() throws Exception {
        String topic = topic(2, Map.of());
        Ran versions = tool("BrokerApiVersionsCommand", with()).ok().says("Produce(0): ", "Fetch(1): ", "ApiVersions(18): ");
        equal((int) versions.lines().stream().filter(l -> l.contains("-> (")).count(), NODES, "brokers");
        tool("MetadataQuorumCommand", with("describe", "--status")).ok().says("ClusterId:", "LeaderId:", "LeaderEpoch:", "CurrentVoters:");
        Ran replication = tool("MetadataQuorumCommand", with("describe", "--replication")).ok().says("Leader", "Follower");
        equal(replication.lines().size(), NODES + 1, "lines for the voters");
        tool("LogDirsCommand", with("--describe", "--topic-list", topic)).ok().says("\"" + topic + "-0\"", "\"" + topic + "-1\"", "\"isFuture\":false");
        tool("LeaderElectionCommand", with("--election-type", "preferred", "--topic", topic, "--partition", "0")).ok().says("Valid replica already elected");
        tool("ClusterTool", "cluster-id", "--bootstrap-server", B).ok().says("Cluster ID:");
        tool("FeatureCommand", with("describe")).ok().says("metadata.version");
    }

    // Moves n records with their offsets in transactions of one; every third is aborted and done again.
    static void move(KafkaProducer<String, String> p, KafkaConsumer<String, String> c, String target, int n) {
        List<ConsumerRecord<String, String>> ahead = new ArrayList<>();
        for (int moved = 0, turn = 0; moved < n; turn++) {
            if (ahead.isEmpty()) ahead.addAll(take(c, 1));
            ConsumerRecord<String, String> r = ahead.get(0);
            TopicPartition from = new TopicPartition(r.topic(), r.partition());
            p.beginTransaction();
            p.send(new ProducerRecord<>(target, r.partition(), null, "out of " + r.value()));
            p.sendOffsetsToTransaction(Map.of(from, new OffsetAndMetadata(r.offset() + 1)), c.groupMetadata());
            if (turn % 3 == 2) {
                p.abortTransaction();
                continue;
            }
            p.commitTransaction();
            ahead.remove(0);
            moved++;
        }
    }

    static void offsetsInTransactions(String protocol) throws Exception {
        String source = topic(1, Map.of()), target = topic(1, Map.of()), group = unique("group"), id = unique("tx");
        send(source, 0, 20);
        String[] member = protocol.equals("classic") ? new String[0]
            : new String[] {"group.protocol", protocol, "session.timeout.ms", null, "heartbeat.interval.ms", null};
        for (int round = 0; round < 2; round++) {
            try (KafkaProducer<String, String> p = producer("transactional.id", id);
                 KafkaConsumer<String, String> c = consumer(group, member)) {
                p.initTransactions();
                c.subscribe(List.of(source));
                move(p, c, target, 10);
            }
        }
        Set<TopicPartition> parts = Set.of(new TopicPartition(source, 0));
        try (KafkaConsumer<String, String> c = consumer(group)) {
            equal(c.committed(parts).get(new TopicPartition(source, 0)).offset(), 20L, "the group's offset");
        }
        List<String> values = new ArrayList<>(), want = new ArrayList<>();
        read(target, 20, "isolation.level", "read_committed").forEach(r -> values.add(r.value()));
        for (int i = 0; i < 20; i++) want.add("out of v" + i);
        equal(values, want, "committed");
    }

    static void fencedOffsets() throws Exception {
        String source = topic(1, Map.of()), group = unique("group"), id = unique("tx");
        TopicPartition part = new TopicPartition(source, 0);
        ConsumerGroupMetadata nobody = new ConsumerGroupMetadata(group);
        try (KafkaProducer<String, String> first = producer("transactional.id", id);
             KafkaProducer<String, String> second = producer("transactional.id", id);
             KafkaConsumer<String, String> c = consumer(group)) {
            first.initTransactions();
            first.beginTransaction();
            first.sendOffsetsToTransaction(Map.of(part, new OffsetAndMetadata(3)), nobody);
            second.initTransactions();
            second.beginTransaction();
            second.sendOffsetsToTransaction(Map.of(part, new OffsetAndMetadata(5)), nobody);
            try {
                first.sendOffsetsToTransaction(Map.of(part, new OffsetAndMetadata(4)), nobody);
                first.commitTransaction();
                throw new AssertionError("the first producer is not fenced");
            } catch (ProducerFencedException | InvalidProducerEpochException e) {
                // As it must be.
            }
            second.commitTransaction();
            equal(c.committed(Set.of(part)).get(part).offset(), 5L, "the offset of the second producer");
        }
    }

    // Its transaction is aborted behind its back: in Kafka's words an abortable error, after which it goes on.
    static void timedOut(boolean writes) throws Exception {
        String topic = topic(1, Map.of()), id = unique("tx");
        try (KafkaProducer<String, String> p = producer("transactional.id", id, "transaction.timeout.ms", "1000")) {
            p.initTransactions();
            p.beginTransaction();
            p.send(new ProducerRecord<>(topic, 0, null, "too slow")).get();
            eventually(() -> state(id) == TransactionState.COMPLETE_ABORT, "the transaction to be aborted");
            if (writes) {
                Throwable refused = refusal(p.send(new ProducerRecord<>(topic, 0, null, "too late")));
                if (!(refused instanceof InvalidProducerEpochException)) throw new AssertionError("refused with " + refused);
            }
            p.abortTransaction();
            for (String value : List.of("in time", "as well")) {
                p.beginTransaction();
                p.send(new ProducerRecord<>(topic, 0, null, value)).get();
                p.commitTransaction();
            }
        }
        List<String> values = new ArrayList<>();
        read(topic, 2, "isolation.level", "read_committed").forEach(r -> values.add(r.value()));
        equal(values, List.of("in time", "as well"), "committed");
    }

    static TransactionState state(String id) throws Exception {
        return admin.describeTransactions(List.of(id)).description(id).get().state();
    }

    static void transactionsTool() throws Exception {
        String topic = topic(1, Map.of()), id = unique("tx"), tool = "TransactionsCommand";
        try (KafkaProducer<String, String> p = producer("transactional.id", id)) {
            p.initTransactions();
            p.beginTransaction();
            p.send(new ProducerRecord<>(topic, 0, null, "left open")).get();
            tool(tool, with("list")).ok().says(id, "Ongoing");
            tool(tool, with("describe", "--transactional-id", id)).ok().says("Ongoing", topic + "-0");
            tool(tool, with("describe-producers", "--topic", topic, "--partition", "0")).ok().says("ProducerId", "CurrentTransactionStartOffset");
            Ran none = tool(tool, with("find-hanging", "--topic", topic, "--max-transaction-timeout", "0")).ok();
            equal(none.out().contains(topic), false, "its coordinator knows of the transaction");
            tool(tool, with("abort", "--topic", topic, "--partition", "0", "--start-offset", "0")).ok();
            tool(tool, with("abort", "--topic", topic, "--partition", "0", "--start-offset", "0")).fails("Could not find any open transactions");
        }
        send(topic, 0, 1);
        equal(read(topic, 1, "isolation.level", "read_committed").get(0).value(), "v0", "what comes after is read");
    }

    static List<Check> checks() {
        return List.of(
            new Check("records of all five codecs come back with headers at the acknowledged offsets", ClientSuite::producesAndConsumes),
            new Check("acks all, 1 and 0 are served", ClientSuite::acks),
            new Check("a record of 10 MB passes where limits are raised", ClientSuite::tenMegabytes),
            new Check("too large a record, an invalid name and an existing topic are refused with their exceptions", ClientSuite::refusals),
            new Check("three members join and leave a group, range", () -> groups("RangeAssignor")),
            new Check("three members join and leave a group, cooperative sticky", () -> groups("CooperativeStickyAssignor")),
            new Check("a static member that comes back disturbs nobody, a classic group", () -> staticMembers(CLASSIC)),
            new Check("a static member that comes back disturbs nobody, a group of the next generation", () -> staticMembers(NEXT)),
            new Check("of two static members with one name one is refused, a classic group", () -> oneInstanceTwice(CLASSIC)),
            new Check("of two static members with one name one is refused, a group of the next generation", () -> oneInstanceTwice(NEXT)),
            new Check("a commit with metadata is fetched back, and the group goes on there", ClientSuite::commits),
            new Check("records move with their offsets in transactions, some aborted, a classic group", () -> offsetsInTransactions("classic")),
            new Check("records move with their offsets in transactions, some aborted, a group of the next generation", () -> offsetsInTransactions("consumer")),
            new Check("a fenced producer commits no offsets, and its open ones are dropped", ClientSuite::fencedOffsets),
            new Check("a producer whose transaction was open for too long aborts it and goes on", () -> timedOut(false)),
            new Check("a producer that writes when its transaction was open for too long aborts it and goes on", () -> timedOut(true)),
            new Check("kafka-transactions: list, describe, describe-producers, find-hanging, abort", ClientSuite::transactionsTool),
            new Check("kafka-topics: create, list, describe, alter, delete", ClientSuite::topicsTool),
            new Check("kafka-console-producer and kafka-console-consumer", ClientSuite::consoles),
            new Check("kafka-producer-perf-test and kafka-consumer-perf-test", ClientSuite::perf),
            new Check("kafka-consumer-groups: list, describe, reset, delete", ClientSuite::groupsTool),
            new Check("kafka-configs: alter and describe for topics, brokers and groups", ClientSuite::configsTool),
            new Check("kafka-get-offsets and kafka-delete-records", ClientSuite::offsetsTools),
            new Check("kafka-broker-api-versions, metadata-quorum, log-dirs, leader-election, cluster, features", ClientSuite::clusterTools));
    }

    public static void main(String[] wanted) throws Exception {
        admin = Admin.create(properties());
        int failed = 0, ran = 0;
        for (Check check : checks()) {
            if (wanted.length > 0 && Arrays.stream(wanted).noneMatch(check.sentence::contains)) continue;
            ran++;
            long begun = System.nanoTime();
            try {
                check.body.run();
                OUT.printf("ok %s (%.1f s)%n", check.sentence, (System.nanoTime() - begun) / 1e9);
            } catch (Throwable e) {
                failed++;
                String reason = String.valueOf(e.getMessage()).replaceAll("\\R", " | ");
                OUT.printf("FAIL %s: %s: %s%n", check.sentence, e.getClass().getSimpleName(), reason.substring(0, Math.min(500, reason.length())));
                e.printStackTrace();
            }
        }
        OUT.printf("done: %d checks%n", ran);
        OUT.flush();
        Runtime.getRuntime().halt(failed > 0 || ran == 0 ? 1 : 0);
    }
}
