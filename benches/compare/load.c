/* Load for compare.py, in C so that the client is not what is measured: produces or consumes over librdkafka and prints
 * one JSON line.
 *
 *   load produce BOOTSTRAP TOPIC PARTITIONS SIZE ACKS SECONDS RATE    (RATE 0: flat out)
 *   load fill    BOOTSTRAP TOPIC PARTITIONS SIZE RECORDS
 *   load consume BOOTSTRAP TOPIC PARTITIONS RECORDS
 */
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static long long delivered, failed;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void report(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
    (void)rk, (void)opaque;
    if (m->err) failed++; else delivered++;
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value) {
    char why[256];
    if (rd_kafka_conf_set(conf, name, value, why, sizeof why) != RD_KAFKA_CONF_OK) {
        fprintf(stderr, "%s=%s: %s\n", name, value, why);
        exit(2);
    }
}

static rd_kafka_t *client(rd_kafka_type_t type, rd_kafka_conf_t *conf, const char *bootstrap) {
    char why[256];
    set(conf, "bootstrap.servers", bootstrap);
    rd_kafka_t *rk = rd_kafka_new(type, conf, why, sizeof why);
    if (!rk) {
        fprintf(stderr, "%s\n", why);
        exit(2);
    }
    return rk;
}

/* Sends until `seconds` have passed, or `limit` records are sent, and waits for every delivery report. */
static int produce(const char *bootstrap, const char *topic, int partitions, size_t size, const char *acks, double seconds,
                   double rate, long long limit) {
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "acks", acks);
    set(conf, "linger.ms", "5");
    set(conf, "batch.size", "1000000");
    set(conf, "batch.num.messages", "100000");
    set(conf, "queue.buffering.max.messages", "2000000");
    set(conf, "queue.buffering.max.kbytes", "1048576");
    rd_kafka_conf_set_dr_msg_cb(conf, report);
    rd_kafka_t *rk = client(RD_KAFKA_PRODUCER, conf, bootstrap);
    rd_kafka_topic_t *rkt = rd_kafka_topic_new(rk, topic, NULL);

    enum { CHUNK = 200 };
    static rd_kafka_message_t chunk[CHUNK];
    char *payload = malloc(size);
    for (size_t i = 0; i < size; i++) payload[i] = (char)(i * 131 + 7);
    double begun = now(), elapsed = 0;
    long long sent = 0;
    while ((elapsed = now() - begun) < seconds && sent < limit) {
        long long due = rate > 0 ? (long long)(rate * elapsed) - sent : CHUNK;
        if (due <= 0) {
            rd_kafka_poll(rk, 1);
            continue;
        }
        int n = due < CHUNK ? (int)due : CHUNK;
        if (limit - sent < n) n = (int)(limit - sent);
        for (int i = 0; i < n; i++) {
            memset(&chunk[i], 0, sizeof chunk[i]);
            chunk[i].payload = payload;
            chunk[i].len = size;
            chunk[i].partition = (int)((sent / CHUNK + i) % partitions);
        }
        int taken = rd_kafka_produce_batch(rkt, 0, RD_KAFKA_MSG_F_COPY | RD_KAFKA_MSG_F_PARTITION, chunk, n);
        sent += taken;
        rd_kafka_poll(rk, taken < n ? 5 : 0);
    }
    rd_kafka_flush(rk, 120000);
    elapsed = now() - begun;
    printf("{\"records\": %lld, \"failed\": %lld, \"seconds\": %.3f, \"client_cpu\": %.3f}\n", delivered, failed + rd_kafka_outq_len(rk), elapsed, cpu());
    rd_kafka_topic_destroy(rkt);
    rd_kafka_destroy(rk);
    return failed != 0;
}

static int consume(const char *bootstrap, const char *topic, int partitions, long long limit) {
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "group.id", "compare");
    set(conf, "enable.auto.commit", "false");
    set(conf, "auto.offset.reset", "earliest");
    set(conf, "queued.min.messages", "5000000");
    set(conf, "queued.max.messages.kbytes", "1048576");
    set(conf, "fetch.message.max.bytes", "4194304");
    set(conf, "fetch.max.bytes", "52428800");
    rd_kafka_t *rk = client(RD_KAFKA_CONSUMER, conf, bootstrap);
    rd_kafka_poll_set_consumer(rk);
    rd_kafka_topic_partition_list_t *parts = rd_kafka_topic_partition_list_new(partitions);
    for (int i = 0; i < partitions; i++) rd_kafka_topic_partition_list_add(parts, topic, i)->offset = 0;
    double begun = now();
    rd_kafka_assign(rk, parts);
    rd_kafka_queue_t *queue = rd_kafka_queue_get_consumer(rk);
    enum { CHUNK = 10000 };
    static rd_kafka_message_t *chunk[CHUNK];
    long long got = 0, bytes = 0;
    while (got < limit && now() - begun < 120) {
        ssize_t n = rd_kafka_consume_batch_queue(queue, 200, chunk, CHUNK);
        for (ssize_t i = 0; i < n; i++) {
            if (!chunk[i]->err) got++, bytes += (long long)chunk[i]->len;
            rd_kafka_message_destroy(chunk[i]);
        }
    }
    double elapsed = now() - begun;
    printf("{\"records\": %lld, \"failed\": %lld, \"bytes\": %lld, \"seconds\": %.3f, \"client_cpu\": %.3f}\n", got, limit - got, bytes, elapsed, cpu());
    rd_kafka_queue_destroy(queue);
    rd_kafka_topic_partition_list_destroy(parts);
    rd_kafka_consumer_close(rk);
    rd_kafka_destroy(rk);
    return got < limit;
}

int main(int argc, char **argv) {
    if (argc == 9 && !strcmp(argv[1], "produce"))
        return produce(argv[2], argv[3], atoi(argv[4]), (size_t)atol(argv[5]), argv[6], atof(argv[7]), atof(argv[8]), 1LL << 62);
    if (argc == 7 && !strcmp(argv[1], "fill"))
        return produce(argv[2], argv[3], atoi(argv[4]), (size_t)atol(argv[5]), "all", 1e9, 0, atoll(argv[6]));
    if (argc == 6 && !strcmp(argv[1], "consume"))
        return consume(argv[2], argv[3], atoi(argv[4]), atoll(argv[5]));
    fprintf(stderr, "see the comment at the top of load.c\n");
    return 2;
}
