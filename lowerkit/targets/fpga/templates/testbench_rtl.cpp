// Runs the design on codes, files of little-endian 64-bit integers, sample after sample:
//   testbench IN OUT COUNT              writes the outputs' codes to OUT
//   testbench IN EXPECTED COUNT check   compares them with EXPECTED; the exit status is 1 where one differs
// Options:
//   --stalls P     how likely an input has a gap, and an output is not taken, in a cycle; 0 if not given
//   --seed N       of gaps and stalls, and of what registers hold before they are written
//   --cycles FILE  writes "direction,port,sample,first,last": cycles of a sample's first and last beat; an input's
//                  first one is where it is offered
// The exit status is 4 where the design halts, which is said with the layer.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#include "verilated.h"

// A port of the model, whose bits lie one after the other in memory, the lowest one first.
struct Bus {
    unsigned char* bytes;
    bool bit(int i) const { return bytes[i / 8] >> (i % 8) & 1; }
    void set(int i, bool on) { bytes[i / 8] = (bytes[i / 8] & ~(1 << (i % 8))) | (on << (i % 8)); }
};

template <class T> Bus bus(T& port) { return {reinterpret_cast<unsigned char*>(&port)}; }

struct Random {
    std::uint64_t state;
    // splitmix64 (Steele, Lea, Flood, Fast splittable pseudorandom number generators, 2014).
    std::uint64_t next() {
        std::uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    bool happens(double chance) { return (next() >> 11) * 0x1p-53 < chance; }
};

struct Span {
    long first, last;
};

struct Stream {
    const char* name;
    int bits;       // of a code
    bool is_signed;
    int lanes;      // codes of a beat, the first one lowest
    long beats;     // of a sample
    Bus data;
    CData &valid, &ready;
    std::vector<std::int64_t> codes;
    std::vector<Span> spans;
    long next = 0;  // beats passed
    long early = 0; // beats behind the last sample: what needs no input may come before it

    long size() const { return beats * lanes; }
    bool passes() const { return valid && ready; }

    void put(const std::int64_t* from) {
        for (int lane = 0; lane < lanes; ++lane)
            for (int i = 0; i < bits; ++i) data.set(lane * bits + i, from[lane] >> i & 1);
    }
    void noise(Random& random) {
        for (int i = 0; i < lanes * bits; ++i) data.set(i, random.next() & 1);
    }
    void get(std::int64_t* to) const {
        for (int lane = 0; lane < lanes; ++lane) {
            to[lane] = is_signed && data.bit(lane * bits + bits - 1) ? -1 : 0;
            for (int i = 0; i < bits; ++i) {
                const std::int64_t one = std::int64_t{1} << i;
                to[lane] = data.bit(lane * bits + i) ? to[lane] | one : to[lane] & ~one;
            }
        }
    }
};

// A channel between layers, of which the model tells whether it is full, and whether its reader finds nothing.
struct Link {
    const char *name, *writer, *reader;
    long depth;
};

#include "ports.h"

static std::vector<Stream> ins, outs;

// One line that names the first layer that leaves an input full and gives nothing, then all channels.
static void explain(Model& model, long count) {
    std::string why;
    for (std::size_t i = 0; i < links.size() && why.empty(); ++i) {
        if (!bus(model.full).bit(i)) continue;
        std::string waits, gives;
        for (std::size_t j = 0; j < links.size(); ++j) {
            if (!std::strcmp(links[j].reader, links[i].reader) && bus(model.empty).bit(j))
                waits += std::string(waits.empty() ? "" : ", ") + links[j].writer;
            if (!std::strcmp(links[j].writer, links[i].reader) && !bus(model.empty).bit(j)) gives = links[j].name;
        }
        if (!gives.empty()) continue;
        why = std::string(": layer ") + links[i].reader + " gives nothing";
        if (!waits.empty()) why += ", as it waits for " + waits;
        why += std::string(", while channel ") + links[i].name + " from " + links[i].writer + ", of " +
               std::to_string(links[i].depth) + " codes, is full";
    }
    for (const Stream& out : outs)
        if (out.next < out.beats * count) {
            std::fprintf(stderr, "%s halts after %ld of %ld codes of %s%s\n", DESIGN, out.next * out.lanes,
                         out.size() * count, out.name, why.c_str());
            break;
        }
    for (std::size_t i = 0; i < links.size(); ++i)
        std::fprintf(stderr, "  %s, %s to %s, %ld codes:%s%s\n", links[i].name, links[i].writer, links[i].reader,
                     links[i].depth, bus(model.full).bit(i) ? " full" : "", bus(model.empty).bit(i) ? " empty" : "");
}

// Feeds and drains all ports; 0, or the exit status of a design that halts or gives too much.
static int simulate(Model& model, long count, double stalls, Random random) {
    model.clk = 0;
    model.rst = 1;
    for (Stream& in : ins) in.valid = 0;
    for (Stream& out : outs) out.ready = 0;
    for (int i = 0; i < 8; ++i) {
        model.clk = !model.clk;
        model.eval();
    }
    model.rst = 0;
    // After the last beat, none may come.
    for (long cycle = 0, quiet = 0, after = 0; after < 100; ++cycle) {
        for (Stream& in : ins) {
            if (in.valid) continue;
            if (in.next < in.beats * count && !random.happens(stalls)) {
                in.valid = 1;
                in.put(&in.codes[in.next * in.lanes]);
                if (in.next % in.beats == 0) in.spans.push_back({cycle, 0});
            } else {
                in.noise(random);
            }
        }
        for (Stream& out : outs) out.ready = !random.happens(stalls);
        model.clk = 0;
        model.eval();
        bool moved = model.moved, done = true;
        for (Stream& out : outs) {
            if (out.passes()) {
                if (out.next == out.beats * count) {
                    if (++out.early < out.beats) continue;
                    std::fprintf(stderr, "%s gives more than %ld samples of %s\n", DESIGN, count, out.name);
                    return 5;
                }
                out.get(&out.codes[out.next * out.lanes]);
                if (out.next % out.beats == 0) out.spans.push_back({cycle, 0});
                out.spans.back().last = cycle;
                ++out.next;
                moved = true;
            }
            done &= out.next == out.beats * count;
        }
        std::vector<Stream*> taken;
        for (Stream& in : ins)
            if (in.passes()) taken.push_back(&in);
        model.clk = 1;
        model.eval();
        for (Stream* in : taken) {
            in->spans.back().last = cycle;
            ++in->next;
            in->valid = 0;
            moved = true;
        }
        quiet = moved ? 0 : quiet + 1;
        after += done;
        if (!done && quiet > PATIENCE) {
            explain(model, count);
            return 4;
        }
    }
    return 0;
}

static bool load(const char* path, long count, std::vector<Stream>& streams) {
    std::FILE* file = std::fopen(path, "rb");
    bool whole = file != nullptr;
    for (long sample = 0; sample < count; ++sample)
        for (Stream& s : streams) {
            std::vector<std::int64_t> row(s.size());
            whole = whole && std::fread(row.data(), 8, row.size(), file) == row.size();
            s.codes.insert(s.codes.end(), row.begin(), row.end());
        }
    if (file) std::fclose(file);
    return whole;
}

static bool save(const char* path, long count) {
    std::FILE* file = std::fopen(path, "wb");
    bool whole = file != nullptr;
    for (long sample = 0; whole && sample < count; ++sample)
        for (const Stream& out : outs)
            whole = whole && std::fwrite(&out.codes[sample * out.size()], 8, out.size(), file) == std::size_t(out.size());
    return whole && !std::fclose(file);
}

static long differing(const std::vector<Stream>& wanted, long count) {
    long wrong = 0;
    for (long sample = 0; sample < count; ++sample)
        for (std::size_t p = 0; p < outs.size(); ++p)
            for (long i = 0; i < outs[p].size(); ++i) {
                const long at = sample * outs[p].size() + i;
                if (outs[p].codes[at] == wanted[p].codes[at]) continue;
                ++wrong;
                std::printf("sample %ld, %s[%ld]: %lld, expected %lld\n", sample, outs[p].name, i,
                            static_cast<long long>(outs[p].codes[at]), static_cast<long long>(wanted[p].codes[at]));
            }
    std::printf("%ld samples, %ld codes differ\n", count, wrong);
    return wrong;
}

static bool report(const char* path) {
    std::FILE* file = std::fopen(path, "w");
    if (!file) return false;
    std::fprintf(file, "direction,port,sample,first,last\n");
    for (const auto* streams : {&ins, &outs})
        for (const Stream& s : *streams)
            for (std::size_t i = 0; i < s.spans.size(); ++i)
                std::fprintf(file, "%s,%s,%zu,%ld,%ld\n", streams == &ins ? "in" : "out", s.name, i, s.spans[i].first,
                             s.spans[i].last);
    return !std::fclose(file);
}

int main(int argc, char** argv) {
    std::vector<const char*> places;
    const char* cycles = nullptr;
    double stalls = 0;
    unsigned long seed = 0;
    bool check = false, wrong = false;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        if (word == "check") check = true;
        else if (word.compare(0, 2, "--")) places.push_back(argv[i]);
        else if (++i == argc) wrong = true;
        else if (word == "--stalls") stalls = std::atof(argv[i]);
        else if (word == "--seed") seed = std::strtoul(argv[i], nullptr, 10);
        else if (word == "--cycles") cycles = argv[i];
        else wrong = true;
    }
    if (wrong || places.size() != 3 || stalls < 0 || stalls >= 1) {
        std::fprintf(stderr, "usage: testbench IN OUT COUNT [check] [--stalls P] [--seed N] [--cycles FILE]\n");
        return 2;
    }
    const long count = std::atol(places[2]);
    Random random{seed};
    VerilatedContext context;
    // Registers begin with random bits.
    context.randReset(2);
    context.randSeed(1 + static_cast<int>(random.next() >> 34));
    Model model{&context};
    ins = inputs(model);
    outs = outputs(model);
    std::vector<Stream> wanted = outs;
    if (!load(places[0], count, ins) || (check && !load(places[1], count, wanted))) {
        std::fprintf(stderr, "%s has fewer than %ld samples\n", places[check], count);
        return 3;
    }
    for (Stream& out : outs) out.codes.resize(count * out.size());
    if (const int status = simulate(model, count, stalls, random)) return status;
    if (cycles && !report(cycles)) return 2;
    if (check) return differing(wanted, count) != 0;
    return save(places[1], count) ? 0 : 2;
}
