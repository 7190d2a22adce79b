// A queue of 2^BITS words, and one more that waits at its output.
module lk_fifo #(
  parameter WIDTH = 8,
  parameter BITS = 4
) (
  input wire clk,
  input wire rst,
  input wire push,
  input wire [WIDTH-1:0] in,
  input wire pop,
  output reg [WIDTH-1:0] out,
  output reg valid,
  output wire ready
);
  reg [WIDTH-1:0] memory [0:(1<<BITS)-1];
  reg [BITS-1:0] head;
  reg [BITS-1:0] tail;
  reg [BITS:0] waiting;
  wire fetch = (waiting != 0) & (~valid | pop);
  assign ready = ~waiting[BITS];
  always @(posedge clk) begin
    if (push) memory[tail] <= in;
    if (fetch) out <= memory[head];
  end
  always @(posedge clk) begin
    if (rst) begin
      head <= 0;
      tail <= 0;
      waiting <= 0;
      valid <= 1'b0;
    end else begin
      if (push) tail <= tail + 1'b1;
      if (fetch) head <= head + 1'b1;
      if (push & ~fetch) waiting <= waiting + 1'b1;
      if (fetch & ~push) waiting <= waiting - 1'b1;
      valid <= fetch | (valid & ~pop);
    end
  end
endmodule
