// The Go client franz-go against a cluster: produce, consume, groups, offsets, admin.
// Prints a line for each check, as tests/lib/checks.py does.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

var seeds = strings.Split(os.Getenv("BOOTSTRAP"), ",")

func client(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(seeds...), kgo.FetchMaxWait(500 * time.Millisecond)}, opts...)...)
}

func unique(prefix string) string { return fmt.Sprintf("%s-%016x", prefix, rand.Uint64()) }

func withAdmin(f func(*kadm.Client) error) error {
	c, err := client()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(kadm.NewClient(c))
}

// topic creates a topic, and returns when its partitions have leaders.
func topic(ctx context.Context, partitions int32, configs map[string]*string) (string, error) {
	name := unique("franz")
	return name, withAdmin(func(a *kadm.Client) error {
		if _, err := a.CreateTopic(ctx, partitions, 3, configs, name); err != nil {
			return err
		}
		for {
			listed, err := a.ListTopics(ctx, name)
			if err == nil && listed[name].Err == nil && len(listed[name].Partitions) == int(partitions) {
				return nil
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

func produce(ctx context.Context, records []*kgo.Record, opts ...kgo.Opt) error {
	c, err := client(append([]kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner())}, opts...)...)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.ProduceSync(ctx, records...).FirstErr()
}

func take(ctx context.Context, c *kgo.Client, n int) ([]*kgo.Record, error) {
	var out []*kgo.Record
	for len(out) < n {
		fetches := c.PollFetches(ctx)
		if errs := fetches.Errors(); len(errs) > 0 {
			return out, fmt.Errorf("after %d of %d records: %w", len(out), n, errs[0].Err)
		}
		out = append(out, fetches.Records()...)
	}
	return out, nil
}

func consume(ctx context.Context, name string, n int) ([]*kgo.Record, error) {
	c, err := client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: {0: kgo.NewOffset().AtStart()}}),
		kgo.FetchMaxBytes(64<<20), kgo.FetchMaxPartitionBytes(32<<20))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return take(ctx, c, n)
}

func roundTrip(ctx context.Context) error {
	name, err := topic(ctx, 1, nil)
	if err != nil {
		return err
	}
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	n := 0
	for _, codec := range codecs {
		var records []*kgo.Record
		for i := 0; i < 200; i++ {
			records = append(records, &kgo.Record{Topic: name, Key: []byte("k"), Value: []byte(strings.Repeat(fmt.Sprint(n), 20)),
				Headers: []kgo.RecordHeader{{Key: "n", Value: []byte(fmt.Sprint(n))}}})
			n++
		}
		if err := produce(ctx, records, kgo.ProducerBatchCompression(codec)); err != nil {
			return err
		}
		for i, r := range records {
			if want := int64(n - len(records) + i); r.Offset != want {
				return fmt.Errorf("acknowledged offset %d, want %d", r.Offset, want)
			}
		}
	}
	got, err := consume(ctx, name, n)
	if err != nil {
		return err
	}
	for i, r := range got {
		if r.Offset != int64(i) || string(r.Value) != strings.Repeat(fmt.Sprint(i), 20) || string(r.Headers[0].Value) != fmt.Sprint(i) {
			return fmt.Errorf("record %d is %v", i, r)
		}
	}
	return nil
}

func acks(ctx context.Context) error {
	name, err := topic(ctx, 1, nil)
	if err != nil {
		return err
	}
	for _, a := range []kgo.Acks{kgo.AllISRAcks(), kgo.LeaderAck(), kgo.NoAck()} {
		if err := produce(ctx, []*kgo.Record{{Topic: name, Value: []byte("x")}}, kgo.RequiredAcks(a), kgo.DisableIdempotentWrite()); err != nil {
			return err
		}
	}
	_, err = consume(ctx, name, 3)
	return err
}

func tenMegabytes(ctx context.Context) error {
	limit := "11000000"
	name, err := topic(ctx, 1, map[string]*string{"max.message.bytes": &limit})
	if err != nil {
		return err
	}
	value := make([]byte, 10<<20)
	rand.New(rand.NewSource(1)).Read(value)
	if err := produce(ctx, []*kgo.Record{{Topic: name, Value: value}}, kgo.ProducerBatchMaxBytes(11000000)); err != nil {
		return err
	}
	got, err := consume(ctx, name, 1)
	if err == nil && !bytes.Equal(got[0].Value, value) {
		err = errors.New("the value differs")
	}
	return err
}

func groups(ctx context.Context) error {
	name, err := topic(ctx, 6, nil)
	if err != nil {
		return err
	}
	var records []*kgo.Record
	for i := 0; i < 600; i++ {
		records = append(records, &kgo.Record{Topic: name, Partition: int32(i % 6), Value: []byte(fmt.Sprint(i))})
	}
	if err := produce(ctx, records); err != nil {
		return err
	}
	group := unique("g")
	opts := []kgo.Opt{kgo.ConsumerGroup(group), kgo.ConsumeTopics(name), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.HeartbeatInterval(300 * time.Millisecond)}
	first, err := client(opts...)
	if err != nil {
		return err
	}
	got, err := take(ctx, first, 300)
	if err != nil {
		return err
	}
	if err := first.CommitUncommittedOffsets(ctx); err != nil {
		return err
	}
	first.Close()
	rest := 600 - len(got)
	seen := map[string]bool{}
	for _, r := range got {
		seen[string(r.Value)] = true
	}
	if rest > 0 {
		second, err := client(opts...)
		if err != nil {
			return err
		}
		defer second.Close()
		more, err := take(ctx, second, rest)
		if err != nil {
			return err
		}
		for _, r := range more {
			if seen[string(r.Value)] {
				return fmt.Errorf("record %s was read twice across a commit", r.Value)
			}
			seen[string(r.Value)] = true
		}
	}
	if len(seen) != 600 {
		return fmt.Errorf("%d of 600 records", len(seen))
	}
	return withAdmin(func(a *kadm.Client) error {
		offsets, err := a.FetchOffsets(ctx, group)
		if err != nil {
			return err
		}
		if len(offsets[name]) == 0 {
			return errors.New("no committed offsets")
		}
		described, err := a.DescribeGroups(ctx, group)
		if err != nil {
			return err
		}
		if described[group].ProtocolType != "consumer" {
			return fmt.Errorf("protocol type %q", described[group].ProtocolType)
		}
		return nil
	})
}

func twoMembers(ctx context.Context) error {
	name, err := topic(ctx, 4, nil)
	if err != nil {
		return err
	}
	group := unique("g")
	count := func(want ...int) error {
		return withAdmin(func(a *kadm.Client) error {
			for {
				described, err := a.DescribeGroups(ctx, group)
				if err != nil {
					return err
				}
				var sizes []int
				for _, m := range described[group].Members {
					if assigned, ok := m.Assigned.AsConsumer(); ok {
						for _, t := range assigned.Topics {
							sizes = append(sizes, len(t.Partitions))
						}
					}
				}
				sort.Ints(sizes)
				if described[group].State == "Stable" && fmt.Sprint(sizes) == fmt.Sprint(want) {
					return nil
				}
				if ctx.Err() != nil {
					return fmt.Errorf("partitions per member %v in state %s, want %v", sizes, described[group].State, want)
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	member := func() (*kgo.Client, context.CancelFunc, error) {
		c, err := client(kgo.ConsumerGroup(group), kgo.ConsumeTopics(name), kgo.HeartbeatInterval(300*time.Millisecond))
		if err != nil {
			return nil, nil, err
		}
		polling, stop := context.WithCancel(ctx)
		go func() {
			for polling.Err() == nil {
				c.PollFetches(polling)
			}
		}()
		return c, stop, nil
	}
	a, stopA, err := member()
	if err != nil {
		return err
	}
	defer a.Close()
	defer stopA()
	if err := count(4); err != nil {
		return err
	}
	b, stopB, err := member()
	if err != nil {
		return err
	}
	err = count(2, 2)
	stopB()
	b.Close()
	if err != nil {
		return err
	}
	return count(4)
}

func admin(ctx context.Context) error {
	name, err := topic(ctx, 2, nil)
	if err != nil {
		return err
	}
	return withAdmin(func(a *kadm.Client) error {
		brokers, err := a.ListBrokers(ctx)
		if err != nil || len(brokers) != len(seeds) {
			return fmt.Errorf("%d brokers, %w", len(brokers), err)
		}
		if _, err := a.CreateTopic(ctx, 1, 3, nil, name); !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("creating it again: %v", err)
		}
		value := "3600000"
		altered, err := a.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &value}}, name)
		if err != nil || altered[0].Err != nil {
			return fmt.Errorf("alter: %v %v", err, altered)
		}
		for {
			configs, err := a.DescribeTopicConfigs(ctx, name)
			if err != nil {
				return err
			}
			found := ""
			for _, c := range configs[0].Configs {
				if c.Key == "retention.ms" {
					found = c.MaybeValue()
				}
			}
			if found == value {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("retention.ms is %q", found)
			}
			time.Sleep(20 * time.Millisecond)
		}
		ends, err := a.ListEndOffsets(ctx, name)
		if err != nil || len(ends[name]) != 2 {
			return fmt.Errorf("end offsets: %v %w", ends, err)
		}
		deleted, err := a.DeleteTopics(ctx, name)
		if err != nil {
			return err
		}
		return deleted[name].Err
	})
}

func main() {
	checks := []struct {
		sentence string
		run      func(context.Context) error
	}{
		{"records of all five codecs come back with headers at the acknowledged offsets", roundTrip},
		{"acks all, 1 and 0 are served", acks},
		{"a record of 10 MB passes where limits are raised", tenMegabytes},
		{"a group goes on where it committed", groups},
		{"two members share a group, and one takes all when the other leaves", twoMembers},
		{"the admin client lists, creates, alters, describes and deletes", admin},
	}
	failed := 0
	for _, c := range checks {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		err := c.run(ctx)
		cancel()
		if err != nil {
			failed++
			fmt.Printf("FAIL %s: %s\n", c.sentence, strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Printf("ok %s (%.1f s)\n", c.sentence, time.Since(begun).Seconds())
		}
	}
	fmt.Printf("done: %d checks\n", len(checks))
	if failed > 0 {
		os.Exit(1)
	}
}
